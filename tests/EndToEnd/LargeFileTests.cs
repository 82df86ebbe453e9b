using System.Diagnostics;
using System.IO.Hashing;
using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// Conversion and load of a model of 8 GB against <c>cp</c>, <c>sync</c> and <c>cat</c> on the same files. Started by
/// <c>./megatron test EndToEnd --large</c>; needs 30 GB of disk, and memory for the model twice.
/// </summary>
public sealed class LargeFileTests(ITestOutputHelper output)
{
    private const int NumLayers = 14;
    private const long ExtraBytesMax = 256L << 20;

    [Fact, Trait("Category", "large")]
    public async Task Convert_8GigabytesBothWays_AsFastAsCopyingInBoundedMemory_AndLoadAsFastAsReading()
    {
        using var folder = new TemporaryFolder();
        var (source, mcore, hf) = (folder.Combine("source"), folder.Combine("mcore"), folder.Combine("hf"));
        var (sizeBytes, largest) = MakeModel(source);
        Print($"model: {sizeBytes / 1e9:F2} GB, largest tensor {largest / 1e6:F0} MB");

        var (copy, toMcore, toHf) = (TimeSpan.MaxValue, TimeSpan.MaxValue, TimeSpan.MaxValue);
        var (peak, baseline) = (0L, await PeakAsync(["checkpoint", "inspect", source]));
        for (var round = 0; round < 2; round++)
        {
            await ForgetAsync(source, folder);
            copy = Best(copy, await ShellAsync($"cp -r '{source}' '{folder.Combine("copy")}' && sync", folder));
            Directory.Delete(folder.Combine("copy"), recursive: true);
            foreach (var path in new[] { mcore, hf }) if (Directory.Exists(path)) Directory.Delete(path, recursive: true);
            await ForgetAsync(source, folder);
            var (time, memory) = await ConvertAsync(["export", "--to_mcore", "--model", source, "--output_dir", mcore]);
            (toMcore, peak) = (Best(toMcore, time), Math.Max(peak, memory));
            await ForgetAsync(mcore, folder);
            (time, memory) = await ConvertAsync(["export", "--to_hf", "--mcore_model", mcore, "--output_dir", hf]);
            (toHf, peak) = (Best(toHf, time), Math.Max(peak, memory));
        }
        Print($"cp and sync: {copy.TotalSeconds:F1} s; export --to_mcore: {toMcore.TotalSeconds:F1} s ({toMcore / copy:F2} times); export --to_hf, which verifies: {toHf.TotalSeconds:F1} s ({toHf / copy:F2} times)");
        Print($"resident memory: at most {peak >> 20} MiB, of which {baseline >> 20} MiB are the program alone; allowed {(largest + ExtraBytesMax) >> 20} MiB");
        AssertSameWeights(source, hf);
        Directory.Delete(hf, recursive: true);
        Directory.Delete(source, recursive: true);

        var checkpoint = Path.Combine(mcore, CheckpointStore.FolderName(1));
        var (read, load) = (TimeSpan.MaxValue, TimeSpan.MaxValue);
        for (var round = 0; round < 3; round++)
        {
            read = Best(read, await ShellAsync($"cat '{checkpoint}'/*.safetensors > /dev/null", folder));
            load = Best(load, Load(checkpoint));
        }
        Print($"cat, page-cached: {read.TotalSeconds:F2} s ({sizeBytes / 1e9 / read.TotalSeconds:F2} GB/s); verify XxHash128 and load: {load.TotalSeconds:F2} s ({sizeBytes / 1e9 / load.TotalSeconds:F2} GB/s), {read / load:P0} of the speed");
        Assert.True(peak <= largest + ExtraBytesMax, $"{peak} bytes resident");
        Assert.True(toMcore <= 1.5 * copy && toHf <= 1.5 * copy, "slower than 1.5 times cp and sync");
        Assert.True(load <= read / 0.6, "slower than 60 % of cat");
    }

    /// <summary>A Qwen3 of 14 wide layers in bf16, with weights that no compression of a file system can shrink.</summary>
    private static (long SizeBytes, long LargestBytes) MakeModel(string folder)
    {
        TinyModelFolder.Create(folder, withWeights: false);
        var path = Path.Combine(folder, "config.json");
        var config = JsonSerializer.Deserialize<Dictionary<string, object>>(File.ReadAllBytes(path)) ?? [];
        foreach (var (name, value) in new (string, object)[]
        {
            ("hidden_size", 4096), ("intermediate_size", 12288), ("num_hidden_layers", NumLayers), ("num_attention_heads", 32), ("num_key_value_heads", 8), ("head_dim", 128),
            ("vocab_size", 151936), ("tie_word_embeddings", false), ("torch_dtype", "bfloat16"),
        })
            config[name] = value;
        File.WriteAllBytes(path, JsonSerializer.SerializeToUtf8Bytes(config));
        SafetensorsSpec[] specs = [.. HfTensorCatalog.Of(HfConfigReader.ReadFolder(folder).Model).Select(tensor => new SafetensorsSpec(tensor.Name, SafetensorsDType.BF16, tensor.Shape))];
        var plan = HfShardPlan.Make(specs, 5_000_000_000);
        var piece = new byte[16 << 20];
        var random = new Random(1);
        random.NextBytes(piece);
        foreach (var shard in plan.Shards)
        {
            using var writer = new SafetensorsWriter(Path.Combine(folder, shard.FileName), shard.Tensors, SafetensorsWriter.PyTorchFormat);
            foreach (var tensor in shard.Tensors)
                for (var missing = tensor.SizeBytes; missing > 0; missing -= Math.Min(missing, piece.Length))
                {
                    piece[random.Next(piece.Length)]++;
                    writer.Write(piece.AsSpan(0, (int)Math.Min(missing, piece.Length)));
                }
            writer.Finish();
        }
        if (plan.IsSharded) File.WriteAllBytes(Path.Combine(folder, HfShardPlan.IndexFileName), plan.MakeIndex());
        return (plan.TotalBytes, specs.Max(spec => spec.SizeBytes));
    }

    /// <summary>What a rank does on <c>--load</c>: find and verify, then fill its weights, which are in memory before.</summary>
    private static TimeSpan Load(string folder)
    {
        TorchTestSetup.EnsureLoaded();
        using var scope = NewDisposeScope();
        var model = HfConfigReader.ReadFolder(folder).Model;
        WeightBlock[] blocks = [.. HfTensorCatalog.Of(model).Select(tensor => new WeightBlock(TensorBlock.Whole(tensor.Name, tensor.Shape), zeros(tensor.Shape, dtype: bfloat16)))];
        var started = Stopwatch.GetTimestamp();
        var found = CheckpointLocator.Find(folder, CheckpointVerification.Full, TimeProvider.System).Found ?? throw new InvalidOperationException("no checkpoint");
        using var reader = new CheckpointReader(found);
        reader.LoadWeights(blocks);
        return Stopwatch.GetElapsedTime(started);
    }

    private static void AssertSameWeights(string expected, string actual)
    {
        foreach (var path in Directory.GetFiles(expected, "*.safetensors"))
        {
            using var left = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 20);
            using var right = new FileStream(Path.Combine(actual, Path.GetFileName(path)), FileMode.Open, FileAccess.Read, FileShare.Read, 1 << 20);
            Assert.Equal(Hash(left), Hash(right));
        }
    }

    private static UInt128 Hash(Stream stream)
    {
        var hash = new XxHash128();
        hash.Append(stream);
        return hash.GetCurrentHashAsUInt128();
    }

    private static async Task<(TimeSpan Time, long PeakBytes)> ConvertAsync(string[] words)
    {
        var started = Stopwatch.GetTimestamp();
        var peak = await PeakAsync(words);
        return (Stopwatch.GetElapsedTime(started), peak);
    }

    /// <summary>Runs the program; its largest resident memory.</summary>
    private static async Task<long> PeakAsync(string[] words)
    {
        using var process = new MegatronProcess(words);
        var ending = process.EndAsync();
        var peak = 0L;
        using var timer = new PeriodicTimer(TimeSpan.FromMilliseconds(50));
        while (!ending.IsCompleted && await timer.WaitForNextTickAsync(TestContext.Current.CancellationToken)) peak = Math.Max(peak, process.PeakResidentBytes());
        (await ending).Expect(words[0] == "checkpoint" ? ExitCode.BadInput : ExitCode.Ok);
        return peak;
    }

    /// <summary>Copy and conversions all read from the disk: what was written a moment ago leaves the page cache.</summary>
    private static Task<TimeSpan> ForgetAsync(string path, TemporaryFolder folder) =>
        ShellAsync($"sync; find '{path}' -type f -exec dd if={{}} iflag=nocache count=0 status=none \\;", folder);

    private static async Task<TimeSpan> ShellAsync(string command, TemporaryFolder folder)
    {
        var started = Stopwatch.GetTimestamp();
        using var shell = Process.Start(new ProcessStartInfo("bash", ["-c", command]) { WorkingDirectory = folder.Root }) ?? throw new InvalidOperationException("no shell");
        await shell.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.Equal(0, shell.ExitCode);
        return Stopwatch.GetElapsedTime(started);
    }

    private static TimeSpan Best(TimeSpan best, TimeSpan time) => time < best ? time : best;

    private void Print(FormattableString line) => output.WriteLine(FormattableString.Invariant(line));
}
