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
