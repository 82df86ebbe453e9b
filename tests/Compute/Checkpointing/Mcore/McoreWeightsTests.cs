using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Checkpointing.Mcore;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Checkpointing.Mcore;

/// <summary>The fixtures of <c>tests/assets/mcore</c>: folders as Megatron-LM writes them, and the same weights by their Hugging Face names.</summary>
public sealed class McoreWeightsTests
{
    public static TheoryData<string> Models => new("qwen3-dense", "qwen3-moe");

    [Theory, MemberData(nameof(Models))]
    public void ReadElements_WholeTensorsAndOddPieces_EqualTheHuggingFaceWeights(string name)
    {
        using var expected = SafetensorsFile.Open(Repository.Asset("mcore", name, "expected.safetensors"));
        using var weights = Open(name);
        WeightCheck.Run(weights, [.. expected.Tensors.Values.Select(entry => new ExpectedTensor(entry.Name, entry.Shape))], new HashSet<string>());
        foreach (var entry in expected.Tensors.Values)
        {
            Assert.Equal(entry.DType, weights.Find(entry.Name)?.DType);
            var wanted = new byte[entry.SizeBytes];
            expected.Read(entry.Name, 0, wanted);
            var size = entry.DType.SizeBytes();
            foreach (var step in new[] { wanted.Length, 3 * size, 17 * size })
                for (var begin = 0; begin < wanted.Length; begin += step)
                {
                    var piece = new byte[Math.Min(step, wanted.Length - begin)];
                    weights.ReadElements(entry.Name, begin / size, piece);
                    Assert.True(piece.AsSpan().SequenceEqual(wanted.AsSpan(begin, piece.Length)), $"{entry.Name} at {begin}");
                }
        }
    }

    [Theory, MemberData(nameof(Models))]
    public void Parse_MetadataClassOfMegatron_GivesTheSameTensors(string name)
    {
        var plain = DcpMetadata.Read(Folder(name));
        var own = DcpMetadata.Parse(File.ReadAllBytes(Repository.Asset("mcore", name, "mcore.metadata")), "mcore.metadata");
        Assert.Equal(plain.Keys, own.Keys);
        foreach (var (key, tensor) in plain)
        {
            Assert.Equal(tensor.Shape, own[key].Shape);
            Assert.Equal(tensor.Chunks.Select(chunk => (chunk.File, chunk.Begin)), own[key].Chunks.Select(chunk => (chunk.File, chunk.Begin)));
        }
    }

    public static TheoryData<string, string> HostilePickles => new()
    {
        { "cposix\nsystem\n(S'id'\ntR.", "MCORE003" },
        { "cos\nsystem\n(X\u0002\0\0\0idtR.", "MCORE003" },
        { "cbuiltins\neval\n.", "MCORE003" },
        { "ctorch\nload\n.", "MCORE003" },
        { "ctorch.distributed.checkpoint.metadata\nMetadata\n.", "MCORE004" },
        { "ccollections\nOrderedDict\n)R.", "MCORE004" },
        { "(icopyreg\n_reconstructor\n.", "MCORE002" },
        { "}.trailing", "MCORE002" },
        { "", "MCORE002" },
        { ".", "MCORE002" },
        { "N", "MCORE002" },
        { "}}}.", "MCORE002" },
        { "h\u0001.", "MCORE002" },
        { "X\u00ff\u00ff\u00ff\u007fabc.", "MCORE002" },
        { "NNb.", "MCORE002" },
        { "(.", "MCORE002" },
        { "NQ.", "MCORE004" },
        { "\u0082\u0001.", "MCORE002" },
        { "K\u0001K\u0002a.", "MCORE002" },
    };

    [Theory, MemberData(nameof(HostilePickles))]
    public void Parse_HostilePickle_IsRefusedWithItsCode(string pickle, string code)
    {
        byte[] bytes = [0x80, 2, .. Encoding.Latin1.GetBytes(pickle)];
        Assert.Equal(code, Assert.Throws<ConfigException>(() => DcpMetadata.Parse(bytes, "file")).Errors[0].Code);
    }

    [Fact]
    public void Open_FolderWithoutItsFiles_SaysSo()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal("MCORE001", Assert.Throws<ConfigException>(() => new McoreWeights(folder.Root, Config("qwen3-dense"))).Errors[0].Code);
        File.Copy(Path.Combine(Folder("qwen3-dense"), ".metadata"), folder.Combine(".metadata"));
        using var weights = new McoreWeights(folder.Root, Config("qwen3-dense"));
        Assert.Equal("MCORE001", Assert.Throws<ConfigException>(() => weights.ReadElements("model.norm.weight", 0, new byte[2])).Errors[0].Code);
    }

    [Fact]
    public void FindFolder_TrackerFile_NamesTheIteration()
    {
        Assert.Equal(Folder("qwen3-dense"), McoreWeights.FindFolder(Repository.Asset("mcore", "qwen3-dense")));
        Assert.Equal(Folder("qwen3-dense"), McoreWeights.FindFolder(Folder("qwen3-dense")));
        Assert.Null(McoreWeights.FindFolder(Repository.Asset("mcore")));
    }

    [Fact]
    public void Read_EveryByteOfMetadataAndArchivesDamaged_OnlyTypedErrors()
    {
        var seed = Environment.TickCount;
        TestContext.Current.TestOutputHelper?.WriteLine($"seed {seed}");
        var random = new Random(seed);
        var metadata = File.ReadAllBytes(Path.Combine(Folder("qwen3-dense"), ".metadata"));
        var refused = 0;
        for (var i = 0; i < 20_000; i++)
        {
            var mutated = Mutation.Mutate(metadata, random);
            try
            {
                DcpMetadata.Parse(mutated, "mutated");
            }
            catch (ConfigException exception)
            {
                refused++;
                Assert.StartsWith("MCORE00", exception.Errors[0].Code, StringComparison.Ordinal);
            }
        }
        Assert.InRange(refused, 10_000, 20_000);

        using var folder = new TemporaryFolder();
        foreach (var file in Directory.GetFiles(Folder("qwen3-dense"))) File.Copy(file, folder.Combine(Path.GetFileName(file)));
        var path = folder.Combine("__0_0.distcp");
        var sound = File.ReadAllBytes(path);
        for (var i = 0; i < 2_000; i++)
        {
            File.WriteAllBytes(path, Mutation.Mutate(sound, random));
            using var weights = new McoreWeights(folder.Root, Config("qwen3-dense"));
            foreach (var name in weights.Names)
            {
                try
                {
                    weights.ReadElements(name, 0, new byte[weights.Find(name)!.Shape.Aggregate(2L, (product, extent) => product * extent)]); // each name has its entry
                }
                catch (ConfigException exception)
                {
                    Assert.StartsWith("MCORE00", exception.Errors[0].Code, StringComparison.Ordinal);
                }
            }
        }
    }

    private static string Folder(string name) => Repository.Asset("mcore", name, "iter_0000010");

    private static ModelConfig Config(string name) => HfConfigReader.ReadFolder(Repository.Asset("mcore", name)).Model;

    private static McoreWeights Open(string name) => new(Folder(name), Config(name));
}
