using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class HfWeightFolderTests
{
    private static readonly HashSet<string> none = [];

    [Theory]
    [MemberData(nameof(SafetensorsFileTests.Models), MemberType = typeof(SafetensorsFileTests))]
    public void ReadBlock_RandomBlocksOfGoldenModel_EqualSlicesOfTheWholeTensor(string model)
    {
        using var leaks = LeakCheck.Start();
        using var folder = HfWeightFolder.Open(Repository.Asset("golden", model));
        var random = new Random(3);
        foreach (var name in folder.Names)
        {
            using var scope = NewDisposeScope();
            var whole = folder.ReadTensor(name);
            var offset = whole.shape.Select(extent => random.NextInt64(0, extent)).ToArray();
            var shape = whole.shape.Zip(offset, (extent, start) => random.NextInt64(1, extent - start + 1)).ToArray();
            var expected = whole;
            for (var dimension = 0; dimension < shape.Length; dimension++) expected = expected.narrow(dimension, offset[dimension], shape[dimension]);
            var block = new TensorBlock(name, whole.shape, offset, shape, 0);
            var exact = zeros(block.NumElements);
            folder.ReadBlock(block, exact);
            Assert.True(exact.Equals(expected.contiguous().view(-1)), name);
            var cast = zeros(block.NumElements, dtype: bfloat16);
            folder.ReadBlock(block, cast);
            Assert.True(cast.Equals(expected.to(bfloat16).contiguous().view(-1)), name);
        }
    }

    [Fact]
    public void WriteWeights_SeveralShards_ReadBackAndStableBytes()
    {
        using var leaks = LeakCheck.Start();
        using var source = HfWeightFolder.Open(Repository.Asset("golden", "qwen3-dense"));
        using var first = new TemporaryFolder();
        using var second = new TemporaryFolder();
        var written = Export(source, first.Root, 100_000);
        Export(source, second.Root, 100_000);
        Assert.True(written.Count > 3);
        Assert.Contains(written, file => file.Name == $"model-00001-of-{written.Count - 1:D5}.safetensors");
        foreach (var file in written)
        {
            var bytes = File.ReadAllBytes(first.Combine(file.Name));
            Assert.Equal(bytes, File.ReadAllBytes(second.Combine(file.Name)));
            Assert.Equal((file.SizeBytes, file.XxHash128), (bytes.Length, Convert.ToHexStringLower(System.IO.Hashing.XxHash128.Hash(bytes))));
        }
        using var read = HfWeightFolder.Open(first.Root);
        Assert.Equal(source.Names.Order(StringComparer.Ordinal), read.Names.Order(StringComparer.Ordinal));
        foreach (var name in read.Names)
        {
            using var a = source.ReadTensor(name);
            using var b = read.ReadTensor(name);
            Assert.True(a.Equals(b));
        }
        using var single = new TemporaryFolder();
        Assert.Equal("model.safetensors", Assert.Single(Export(source, single.Root, 5_000_000_000)).Name);
        Assert.Equal(File.ReadAllBytes(Repository.Asset("golden", "qwen3-dense", "model.safetensors")), File.ReadAllBytes(single.Combine("model.safetensors")));
    }

    [Fact]
    public void WriteSideFiles_ConfigAndTokenizer_AreCopied()
    {
        using var folder = new TemporaryFolder();
        using var tokenizer = new TemporaryFolder();
        foreach (var name in new[] { "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "unrelated.txt" })
            File.WriteAllText(tokenizer.Combine(name), name);
        var files = HfFolderWriter.WriteSideFiles(folder.Root, new HfSideFiles { Config = "{}"u8.ToArray(), Args = "{}"u8.ToArray(), GenerationConfig = "{}"u8.ToArray(), TokenizerFolder = tokenizer.Root });
        Assert.Equal(
            ["args.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"],
            Directory.GetFiles(folder.Root).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal));
        Assert.Equal(8, files.Count);
        Assert.NotNull(ConfigFacts.TokenizerHash(folder.Root));
        Assert.Equal(ConfigFacts.TokenizerHash(tokenizer.Root), ConfigFacts.TokenizerHash(folder.Root));
    }

    [Fact]
    public void Check_EveryKindOfDifference_IsListedAtOnce()
    {
        using var folder = HfWeightFolder.Open(Repository.Asset("golden", "qwen2.5-dense"));
        var expected = folder.Names.Select(name => new ExpectedTensor(name, folder.Entry(name).Shape)).ToList();
        folder.Check(expected, none);
        folder.Check([.. expected, new("lm_head.weight", [160, 32])], new HashSet<string> { "lm_head.weight" });
        var wrong = expected.Skip(1).Select((tensor, index) => index == 0 ? tensor with { Shape = [7] } : tensor).Append(new("extra.weight", [1])).ToList();
        var exception = Assert.Throws<ConfigException>(() => folder.Check(wrong, none));
        Assert.Equal(["MODEL001", "MODEL002", "MODEL003"], exception.Errors.Select(error => error.Code));
        exception = Assert.Throws<ConfigException>(() => folder.Check([.. expected, .. Enumerable.Range(0, 50).Select(index => new ExpectedTensor($"t{index}", [1]))], none));
        Assert.Equal(21, exception.Errors.Count);
        Assert.Contains("50 in total", exception.Errors[^1].Message);
    }

    [Fact]
    public void Open_FoldersWithoutUsableWeights_AreRefusedInOneSentence()
    {
        using var folder = new TemporaryFolder();
        Assert.Contains("MODEL005", Assert.Throws<ConfigException>(() => HfWeightFolder.Open(folder.Combine("none"))).Message);
        Assert.Contains("neither", Assert.Throws<ConfigException>(() => HfWeightFolder.Open(folder.Root)).Message);
        foreach (var name in new[] { "pytorch_model.bin", "model.pt", "model.pth" })
        {
            File.WriteAllText(folder.Combine(name), "pickle");
            Assert.Contains("convert the model to safetensors", Assert.Throws<ConfigException>(() => HfWeightFolder.Open(folder.Root)).Message);
            File.Delete(folder.Combine(name));
        }
    }

    [Fact]
    public void CountNonFinite_NanAndInfinity_AreCounted()
    {
        using var leaks = LeakCheck.Start();
        using var folder = new TemporaryFolder();
        HfFolderWriter.WriteWeights(folder.Root, [new(new("x", SafetensorsDType.BF16, [4]), () => tensor(new[] { 1f, float.NaN, float.PositiveInfinity, 0f }))], 1000);
        using var weights = HfWeightFolder.Open(folder.Root);
        Assert.Equal(2, weights.CountNonFinite("x"));
    }

    [Theory]
    [InlineData("../x.safetensors")]
    [InlineData("/etc/x.safetensors")]
    [InlineData("a/x.safetensors")]
    [InlineData("a\\\\x.safetensors")]
    [InlineData("x.bin")]
    [InlineData("x.safetensors.bin")]
    [InlineData(".safetensors")]
    [InlineData("..safetensors")]
    [InlineData("")]
    [InlineData("x\\u0000.safetensors")]
    [InlineData("x\\n.safetensors")]
    [InlineData("missing.safetensors")]
    public void Open_IndexNamesABadFile_IsRefused(string file)
    {
        using var folder = ShardedFolder();
        AssertIndexRefused(folder, $$$"""{"metadata":{"total_size":1},"weight_map":{"a":"1.safetensors","b":"{{{file}}}"}}""");
    }

    [Theory]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":"1.safetensors"}}""")]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}}""")]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":"2.safetensors","a":"2.safetensors"}}""")]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":"2.safetensors","d":"3.safetensors"}}""")]
    [InlineData("""{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}""")]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":null}}""")]
    [InlineData("""{"weight_map":{"a":1}}""")]
    [InlineData("""{"weight_map":["1.safetensors"]}""")]
    [InlineData("""{"weight_map":{}}""")]
    [InlineData("""{"metadata":{}}""")]
    [InlineData("""{"weight_map":null}""")]
    [InlineData("null")]
    [InlineData("[]")]
    [InlineData("{")]
    [InlineData("")]
    public void Open_IndexAndFilesDisagree_IsRefused(string index)
    {
        using var folder = ShardedFolder();
        AssertIndexRefused(folder, index);
    }

    [Fact]
    public void Open_SoundIndex_IsAccepted()
    {
        using var folder = ShardedFolder();
        File.WriteAllText(folder.Combine("model.safetensors.index.json"), """{"other":[{"x":1}],"weight_map":{"a":"1.safetensors","b":"2.safetensors"},"metadata":{"total_size":"7"}}""");
        using var weights = HfWeightFolder.Open(folder.Root);
        Assert.Equal(2, weights.Names.Count);
    }

    [Theory]
    [InlineData("5GB", 5_000_000_000)]
    [InlineData(" 1.5 kb", 1500)]
    [InlineData("2GiB", 2L << 30)]
    [InlineData("700", 700)]
    [InlineData("10B", 10)]
    [InlineData("3TB", 3_000_000_000_000)]
    public void ParseSize_Sizes_InBytes(string text, long bytes) => Assert.Equal(bytes, HfShardPlan.ParseSize(text));

    [Theory]
    [InlineData("")]
    [InlineData("GB")]
    [InlineData("5XB")]
    [InlineData("-1GB")]
    [InlineData("0")]
    [InlineData("1e9")]
    [InlineData("1.2.3GB")]
    [InlineData("99999999999TB")]
    public void ParseSize_NoSize_IsRefused(string text) => Assert.Contains("CFG041", Assert.Throws<ConfigException>(() => HfShardPlan.ParseSize(text)).Message);

    private static IReadOnlyList<CheckpointFile> Export(HfWeightFolder source, string folder, long shardBytesMax) =>
        HfFolderWriter.WriteWeights(folder, [.. source.Names.Select(name => new HfTensor(new(name, source.Entry(name).DType, source.Entry(name).Shape), () => source.ReadTensor(name)))], shardBytesMax);

    private static TemporaryFolder ShardedFolder()
    {
        var folder = new TemporaryFolder();
        File.WriteAllBytes(folder.Combine("1.safetensors"), CorruptSafetensors.Make("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", 4));
        File.WriteAllBytes(folder.Combine("2.safetensors"), CorruptSafetensors.Make("""{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 8));
        File.WriteAllBytes(folder.Combine("3.safetensors"), CorruptSafetensors.Make("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 8));
        return folder;
    }

    private static void AssertIndexRefused(TemporaryFolder folder, string index)
    {
        File.WriteAllText(folder.Combine("model.safetensors.index.json"), index);
        var exception = Assert.Throws<ConfigException>(() => HfWeightFolder.Open(folder.Root).Dispose());
        Assert.All(exception.Errors, error => Assert.Equal("ST025", error.Code));
        Assert.DoesNotContain(exception.Message, character => char.IsControl(character) && character != '\n');
    }
}
