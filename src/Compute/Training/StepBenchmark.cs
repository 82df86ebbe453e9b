using System.Diagnostics;
using System.Text.Json.Serialization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>What a benchmark measured. Times in milliseconds.</summary>
public sealed record BenchmarkResult
{
    public required string Preset { get; init; }
    public required string Device { get; init; }
    public required string LibTorch { get; init; }
    public required int MicroBatchSize { get; init; }
    public required int SeqLength { get; init; }
    public required long NumParameters { get; init; }
    public required double StepMsMedian { get; init; }
    public required double StepMsMin { get; init; }
    public required double StepMsMax { get; init; }

    /// <summary>Forward and backward of the step, and reduction + optimizer, each measured with a synchronised device.</summary>
    public required double ForwardBackwardMs { get; init; }

    public required double OptimizerMs { get; init; }
    public required double TokensPerSecond { get; init; }

    /// <summary>Causal attention counted half; recompute not counted.</summary>
    public required double TeraFlopsCausal { get; init; }

    /// <summary>Attention counted in full, as some tables do.</summary>
    public required double TeraFlopsFull { get; init; }

    /// <summary>Causal figure over 989.4 TFLOP/s, the dense bf16 peak of an H100 or H200; 0 on a CPU.</summary>
    public required double ModelFlopsUtilization { get; init; }

    /// <summary>What the allocators hold after the run: the peak, since they give nothing back. 0 on a CPU.</summary>
    public required double PeakMemoryGiB { get; init; }

    /// <summary>Time in which the host launches forward and backward, over their launches; null where the GPU cannot be recorded.</summary>
    public double? MicrosecondsPerLaunch { get; init; }

    /// <summary>Kernels, copies and fills of one step; null where the GPU cannot be recorded.</summary>
    public int? LaunchesPerStep => Profile?.Launches;

    /// <summary>Those of forward and backward of one layer.</summary>
    public int? LaunchesPerLayer { get; init; }

    /// <summary>Time on the GPU of all of them together.</summary>
    public double? KernelMs => Profile?.KernelMs;

    /// <summary>What one more step did on the GPU; null on a CPU and where CUPTI is missing.</summary>
    [JsonIgnore]
    public StepProfile? Profile { get; init; }
}

/// <summary>
/// Times the whole training step (data hand-over, forward, backward, clip, update) of a published shape with random weights and tokens.
/// </summary>
public static class StepBenchmark
{
    private const double PeakTeraFlops = 989.4;
    private const int WarmupSteps = 10; // until the code that launches kernels is compiled for good

    /// <summary>Runs the benchmark on this thread.</summary>
    /// <param name="config">preset, micro_batch_size, seq_length, train_iters (timed steps), dtype, recompute, device.</param>
    public static BenchmarkResult Run(TrainingConfig config, LibTorchOptions options)
    {
        var preset = config.Preset ?? "qwen3-0.6b";
        var model = BenchmarkPresets.Get(preset);
        var loaded = LibTorch.Load(options);
        var device = CudaDevices.Choose(config.Device, localRank: 0, loaded);
        config = config with { TorchDtype = config.TorchDtype ?? "bfloat16" };
        var seqLength = config.SeqLength ?? 4096;

        using var parallel = ParallelState.SingleRank();
        using var gpt = new ModelChunks(model, RunSettings.Model(config, device), parallel, [StageLayout.Whole(model)]);
        FillRandom(gpt);
        using var trainer = new Trainer(gpt, parallel, device, RunSettings.Trainer(config));
        trainer.Optimizer.CopyModelToMasters();
        var batch = RandomBatch(config.MicroBatchSize, seqLength, model.VocabSize);

        for (var i = 0; i < WarmupSteps; i++) trainer.TrainStep(batch, 1e-6);
        var steps = Time(config.TrainIters ?? 10, device, () => trainer.TrainStep(batch, 1e-6));
        var halves = Time(3, device, () =>
        {
            using var scope = NewDisposeScope();
            trainer.AccumulateGradients(batch);
        });
        var result = Summarize(preset, config, device, loaded, gpt, batch, seqLength, steps, halves);
        if (config.Profile is not null && device.type != DeviceType.CUDA)
            throw new ConfigException("BENCH002", "profile records the GPU, and this benchmark runs on the CPU; leave it out or give --device cuda.");
        if (device.type != DeviceType.CUDA) return result;
        if (RecordStep(() => trainer.TrainStep(batch, 1e-6), isAskedFor: config.Profile is not null) is not { } profile) return result;
        if (config.Profile is { } path) profile.WriteChromeTrace(path);
        var issueMs = Time(5, device, () => trainer.AccumulateGradients(batch), waits: false);
        return result with
        {
            Profile = profile,
            LaunchesPerLayer = profile.LaunchesPerLayer(gpt.Config.NumLayers),
            MicrosecondsPerLaunch = issueMs[issueMs.Length / 2] * 1e3 / profile.ForwardBackwardLaunches,
        };
    }

    /// <summary>Without CUPTI there is no profile, and no benchmark fails for it.</summary>
    private static StepProfile? RecordStep(Action step, bool isAskedFor)
    {
        try
        {
            return new StepProfile(CudaTrace.Record(step));
        }
        catch (ConfigException) when (!isAskedFor)
        {
            return null;
        }
    }

    /// <summary>The table of kernels.</summary>
    /// <exception cref="ConfigException">BENCH003: there is no GPU.</exception>
    public static IReadOnlyList<KernelRow> Kernels(TrainingConfig config, LoadedLibTorch loaded, int seed)
    {
        var device = CudaDevices.Choose(config.Device, localRank: 0, loaded);
        if (device.type != DeviceType.CUDA) throw new ConfigException("BENCH003", "kernels are compared on a GPU, and this benchmark runs on the CPU; leave it out or give --device cuda.");
        return KernelTable.Run(device, seed);
    }

    private static BenchmarkResult Summarize(
        string preset, TrainingConfig config, Device device, LoadedLibTorch loaded, ModelChunks gpt, GlobalBatch batch, int seqLength, double[] steps, double[] halves)
    {
        var median = steps[steps.Length / 2];
        var tokens = batch.MicroBatches.Sum(microBatch => microBatch.NumTokens);
        var causal = ModelFlops.Of(gpt.Config, batch);
        var attention = 6.0 * gpt.Config.NumLayers * gpt.Config.NumAttentionHeads * gpt.Config.KvChannels * seqLength * tokens;
        return new BenchmarkResult
        {
            Preset = preset,
            Device = device.type == DeviceType.CUDA ? "cuda" : "cpu",
            LibTorch = loaded.Version.ToString(),
            MicroBatchSize = config.MicroBatchSize,
            SeqLength = seqLength,
            NumParameters = gpt.Parameters.Sum(parameter => parameter.NumElements),
            StepMsMedian = median,
            StepMsMin = steps[0],
            StepMsMax = steps[^1],
            ForwardBackwardMs = halves[halves.Length / 2],
            OptimizerMs = median - halves[halves.Length / 2],
            TokensPerSecond = tokens / median * 1e3,
            TeraFlopsCausal = causal / median / 1e9,
            TeraFlopsFull = (causal + attention) / median / 1e9,
            ModelFlopsUtilization = device.type == DeviceType.CUDA ? causal / median / 1e9 / PeakTeraFlops : 0,
            PeakMemoryGiB = device.type == DeviceType.CUDA ? CudaDevices.UsedBytes() / (double)(1L << 30) : 0,
        };
    }

    /// <summary>Sorted milliseconds of <paramref name="count"/> calls, the device idle before and after each.</summary>
    /// <param name="waits">False measures the host alone, until the call returns.</param>
    private static double[] Time(int count, Device device, Action action, bool waits = true)
    {
        var times = new double[count];
        for (var i = 0; i < count; i++)
        {
            CudaDevices.Synchronize(device);
            var start = Stopwatch.GetTimestamp();
            action();
            if (waits) CudaDevices.Synchronize(device);
            times[i] = Stopwatch.GetElapsedTime(start).TotalMilliseconds;
        }
        Array.Sort(times);
        return times;
    }

    /// <summary>Weights drawn on the device: their values do not matter here, and a billion counter-based ones take minutes on a CPU.</summary>
    private static void FillRandom(ModelChunks gpt)
    {
        foreach (var parameter in gpt.Parameters)
        {
            using var scope = NewDisposeScope();
            if (parameter.Name.EndsWith("norm.weight", StringComparison.Ordinal)) parameter.Data.fill_(1);
            else parameter.Data.normal_(0, gpt.Config.InitializerRange);
        }
    }

    private static GlobalBatch RandomBatch(int rows, int length, int vocabSize)
    {
        var random = new Random(1);
        var ids = new long[rows * length];
        for (var i = 0; i < ids.Length; i++) ids[i] = random.Next(vocabSize);
        return ArrayBatchSource.Create(ids, ids, rows, length, BatchLayout.SingleRankUnpadded(rows)).Get(0);
    }
}
