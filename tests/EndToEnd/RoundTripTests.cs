using System.IO.Compression;
using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>Hugging Face folder → checkpoint → Hugging Face folder: the same tensors, and the same bytes on every repetition.</summary>
public sealed class RoundTripTests
{
    public static TheoryData<string, string> Cases
    {
        get
        {
            var cases = new TheoryData<string, string>();
            foreach (var model in new[] { "tiny", "qwen2.5-dense", "qwen3-dense", "llama3.1-dense" })
                foreach (var size in new[] { "5GB", "100KB" })
                    cases.Add(model, size);
            return cases;
        }
    }

    [Theory, MemberData(nameof(Cases))]
    public async Task Export_HfToMcoreToHf_IsBitIdenticalAndStable(string model, string maxShardSize)
    {
        using var folder = new TemporaryFolder();
        var source = folder.Combine("source");
        if (model == "tiny") TinyModelFolder.Create(source);
        else CopyGolden(model, source);

        await ConvertAsync(source, folder.Combine("mcore"), folder.Combine("hf"), maxShardSize);
        AssertSameTensors(source, folder.Combine("hf"));
        var shards = Directory.GetFiles(folder.Combine("hf"), "*.safetensors").Length;
        Assert.Equal(maxShardSize != "5GB", shards > 1);
        foreach (var name in new[] { "config.json", "generation_config.json", "tokenizer.json", "args.json" }) Assert.True(File.Exists(folder.Combine("hf", name)), name);

        // Repetition: the same bytes in every file. The manifest of the checkpoint and args.json name the paths, so they are made again in place.
        Directory.Move(folder.Combine("mcore"), folder.Combine("mcore-1"));
        Directory.Move(folder.Combine("hf"), folder.Combine("hf-1"));
        await ConvertAsync(source, folder.Combine("mcore"), folder.Combine("hf"), maxShardSize);
        RunFiles.AssertSame(folder.Combine("hf-1"), folder.Combine("hf"));
        RunFiles.AssertSame(folder.Combine("mcore-1"), folder.Combine("mcore"), Path.Combine("iter_0000001", "manifest.json"));

        // Once more around: the export of the export is the export.
        await ConvertAsync(folder.Combine("hf"), folder.Combine("mcore-3"), folder.Combine("hf-3"), maxShardSize);
        RunFiles.AssertSame(folder.Combine("hf"), folder.Combine("hf-3"), "args.json");
    }

    [Theory]
    [InlineData("float32")] // copied unchanged: verified on the way
    [InlineData("bfloat16")] // cast: verified before
    public async Task ExportToHf_OfWeightsDamagedOnDisk_IsRefusedAndLeavesNothing(string dtype)
    {
        using var folder = new TemporaryFolder();
        var (source, mcore, hf) = (folder.Combine("source"), folder.Combine("mcore"), folder.Combine("hf"));
        TinyModelFolder.Create(source);
        (await CommandLine.RunAsync("export", "--to_mcore", "--model", source, "--torch_dtype", "float32", "--output_dir", mcore)).Expect(ExitCode.Ok);
        var weights = Path.Combine(mcore, "iter_0000001", "model.safetensors");
        var bytes = await File.ReadAllBytesAsync(weights, TestContext.Current.CancellationToken);
        bytes[^5] ^= 4;
        await File.WriteAllBytesAsync(weights, bytes, TestContext.Current.CancellationToken);
        var ended = (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", mcore, "--torch_dtype", dtype, "--output_dir", hf)).Expect(ExitCode.BadInput);
        Assert.Contains("(hash differs)", ended.Error + ended.Output, StringComparison.Ordinal);
        Assert.Equal([mcore, source], Directory.GetFileSystemEntries(folder.Root).Order(StringComparer.Ordinal));
    }

    [Theory]
    [InlineData("qwen3-dense")]
    [InlineData("qwen3-moe")]
    public async Task Export_CheckpointOfMegatronLm_GivesTheHuggingFaceModel(string name)
    {
        using var folder = new TemporaryFolder();
        var source = Repository.Asset("mcore", name);
        var printed = (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", source, "--output_dir", folder.Combine("hf"))).Expect(ExitCode.Ok).Output;
        Assert.Contains("was written by Megatron-LM", printed, StringComparison.Ordinal);
        File.Copy(Path.Combine(source, "expected.safetensors"), folder.Combine("model.safetensors"));
        AssertSameTensors(folder.Root, folder.Combine("hf"));

        (await CommandLine.RunAsync("checkpoint", "inspect", source)).Expect(ExitCode.Ok);
        TinyModelFolder.Create(folder.Combine("model"));
        var refused = (await CommandLine.RunAsync("sft", "--model", folder.Combine("model"), "--load", source, "--dataset", "x.jsonl", "--train_iters", "1")).Expect(ExitCode.BadInput);
        Assert.Contains("megatron export --to_hf", refused.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Export_Interrupted_GoesOnWithTheNextFileAndGivesTheSameBytes()
    {
        using var folder = new TemporaryFolder();
        TinyModelFolder.Create(folder.Combine("model"), layers: 4);
        string[] words = ["export", "--to_mcore", "--model", folder.Combine("model"), "--max_shard_size", "300KB", "--output_dir"];
        (await CommandLine.RunAsync([.. words, folder.Combine("whole")])).Expect(ExitCode.Ok);
        Directory.Move(folder.Combine("whole"), folder.Combine("first"));

        // What a killed export leaves: some finished files in the journal, one torn file.
        var partial = folder.Combine("whole.partial");
        using var source = HfWeightFolder.Open(folder.Combine("model"));
        using (var journal = ConversionJournal.Open(partial, $"float32|300KB|{source.Fingerprint}"))
        {
            var plan = HfShardPlan.Make([.. source.Names.Order(StringComparer.Ordinal).Select(tensor => new SafetensorsSpec(tensor, source.Entry(tensor).DType, source.Entry(tensor).Shape))], 300_000);
            var temporary = Directory.CreateDirectory(Path.Combine(partial, ".tmp-0-convert")).FullName;
            new WeightCopier(source, plan, temporary, journal).Write();
            foreach (var shard in plan.Shards.Skip(2)) File.WriteAllBytes(Path.Combine(temporary, shard.FileName), [1, 2, 3]);
        }
        var resumed = (await CommandLine.RunAsync([.. words, folder.Combine("whole")])).Expect(ExitCode.Ok).Output;
        Assert.Contains("going on in", resumed, StringComparison.Ordinal);
        RunFiles.AssertSame(folder.Combine("first"), folder.Combine("whole"), Path.Combine("iter_0000001", "manifest.json"));
        Assert.False(Directory.Exists(partial));
    }

    [Fact]
    public async Task Export_TestConvertPrecision_PrintsTheComparisonBothWays()
    {
        using var folder = new TemporaryFolder();
        TinyModelFolder.Create(folder.Combine("source"));
        string[] toMcore = ["export", "--to_mcore", "--model", folder.Combine("source"), "--output_dir", folder.Combine("mcore"), "--test_convert_precision", "true"];
        string[] toHf = ["export", "--to_hf", "--mcore_model", folder.Combine("mcore"), "--output_dir", folder.Combine("hf"), "--test_convert_precision", "true"];
        foreach (var words in new[] { toMcore, toHf })
        {
            var lines = (await CommandLine.RunAsync(words)).Expect(ExitCode.Ok).Output.Split('\n');
            Assert.Contains("mean_diff: 0, max_diff: 0 (mean_diff must be below 0.1)", lines);
            Assert.Equal(lines.Single(line => line.StartsWith("hf_tokens: [", StringComparison.Ordinal))["hf".Length..],
                lines.Single(line => line.StartsWith("mg_tokens: [", StringComparison.Ordinal))["mg".Length..]);
        }
    }

    // Half precision cannot hold these weights: the largest number of float16 is 65,504.
    [Fact]
    public async Task Export_ModelThatTheDtypeChanges_FailsTheComparisonAndWritesNothing()
    {
        using var folder = new TemporaryFolder();
        var source = folder.Combine("source");
        TinyModelFolder.Create(source);
        TinyModelFolder.Scale(source, "model.layers.0.mlp.down_proj.weight", 1e7);
        var result = (await CommandLine.RunAsync("export", "--to_mcore", "--model", source, "--output_dir", folder.Combine("mcore"), "--torch_dtype", "float16",
            "--test_convert_precision")).Expect(ExitCode.Failed);
        Assert.StartsWith("error: EXPORT001 the converted model computes something else than its source (mean_diff ", result.Error, StringComparison.Ordinal);
        Assert.Equal(["source"], Directory.GetFileSystemEntries(folder.Root).Select(path => Path.GetFileName(path)));
    }

    [Fact]
    public async Task Export_CompressedTokenizer_IsUnpackedForOtherPrograms()
    {
        using var folder = new TemporaryFolder();
        var source = folder.Combine("source");
        TinyModelFolder.Create(source);
        var plain = await File.ReadAllBytesAsync(Path.Combine(source, "tokenizer.json"), TestContext.Current.CancellationToken);
        await using (var packed = new GZipStream(File.Create(Path.Combine(source, "tokenizer.json.gz")), CompressionLevel.Fastest)) packed.Write(plain);
        File.Delete(Path.Combine(source, "tokenizer.json"));
        await ConvertAsync(source, folder.Combine("mcore"), folder.Combine("hf"), "5GB");
        foreach (var made in new[] { folder.Combine("mcore", "iter_0000001"), folder.Combine("hf") })
            Assert.Equal(plain, await File.ReadAllBytesAsync(Path.Combine(made, "tokenizer.json"), TestContext.Current.CancellationToken));
    }

    private static async Task ConvertAsync(string hf, string mcore, string back, string maxShardSize)
    {
        (await CommandLine.RunAsync("export", "--to_mcore", "--model", hf, "--output_dir", mcore, "--max_shard_size", maxShardSize)).Expect(ExitCode.Ok);
        (await CommandLine.RunAsync("export", "--to_hf", "--mcore_model", mcore, "--output_dir", back, "--max_shard_size", maxShardSize)).Expect(ExitCode.Ok);
    }

    private static void AssertSameTensors(string expected, string actual)
    {
        using var left = HfWeightFolder.Open(expected);
        using var right = HfWeightFolder.Open(actual);
        Assert.Equal(left.Names.Order(StringComparer.Ordinal), right.Names.Order(StringComparer.Ordinal));
        foreach (var name in left.Names)
        {
            using var x = left.ReadTensor(name);
            using var y = right.ReadTensor(name);
            Assert.Equal(x.dtype, y.dtype);
            Assert.Equal(x.shape, y.shape);
            Assert.True(x.bytes.SequenceEqual(y.bytes), name);
        }
    }

    private static void CopyGolden(string model, string target)
    {
        Directory.CreateDirectory(target);
        foreach (var name in new[] { "config.json", "generation_config.json", "model.safetensors" })
            File.Copy(Repository.Asset("golden", model, name), Path.Combine(target, name));
        foreach (var name in new[] { "tokenizer.json", "tokenizer_config.json" })
            File.Copy(Repository.Asset("tokenizers", "tiny", name), Path.Combine(target, name));
    }
}
