using System.Globalization;
using System.Text.Json;
using Megatron.Compute.Native;
using Megatron.Compute.Training;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron benchmark</c>: times the training step of a published shape; a table, then one JSON line. With <c>--kernels</c> the table of kernels.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class BenchmarkCommand(CommandConsole console) : IVerbCommand
{
    private const int KernelRows = 30;

    private static readonly JsonSerializerOptions SnakeCase = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };

    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        if (options.Config.Kernels)
        {
            PrintKernels(options);
            return Task.FromResult(ExitCode.Ok);
        }
        var result = StepBenchmark.Run(options.Config, new LibTorchOptions { Folder = options.Environment.LibTorch });
        Row("model", $"{result.Preset}, {result.NumParameters / 1e9:F2} B parameters, libtorch {result.LibTorch} on {result.Device}");
        Row("batch", $"{result.MicroBatchSize} × {result.SeqLength} tokens");
        Row("step", $"{result.StepMsMedian:F1} ms median ({result.StepMsMin:F1} to {result.StepMsMax:F1})");
        Row("phases", $"forward + backward {result.ForwardBackwardMs:F1} ms, optimizer {result.OptimizerMs:F1} ms");
        Row("tokens/s", $"{result.TokensPerSecond:F0}");
        Row("TFLOP/s", $"{result.TeraFlopsCausal:F1} causal, {result.TeraFlopsFull:F1} full");
        Row("MFU", $"{100 * result.ModelFlopsUtilization:F1} % of 989.4 TFLOP/s");
        Row("memory", $"{result.PeakMemoryGiB:F1} GiB");
        if (result.Profile is { } profile)
        {
            Row("launches", $"{profile.Launches} a step, {result.LaunchesPerLayer} a layer; {result.MicrosecondsPerLaunch:F2} µs of the host for each of forward and backward");
            Row("kernels", $"{profile.KernelMs:F2} ms together; the step takes {result.StepMsMedian / profile.KernelMs:F2} times as long");
            if (options.Config.Profile is { } path) PrintProfile(profile, path);
        }
        console.Out.WriteLine(JsonSerializer.Serialize(result, SnakeCase));
        return Task.FromResult(ExitCode.Ok);
    }

    private void PrintKernels(ParsedOptions options)
    {
        var seed = Environment.TickCount;
        var loaded = LibTorch.Load(new LibTorchOptions { Folder = options.Environment.LibTorch });
        var rows = StepBenchmark.Kernels(options.Config, loaded, seed);
        console.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"libtorch {loaded.Version}, seed {seed}; errors are relative L2, bars {KernelTable.MaxErrorFp32:0e-0} and {KernelTable.MaxErrorBf16:0e-0}\n"));
        console.Out.Write(KernelTable.Markdown(rows));
    }

    private void PrintProfile(StepProfile profile, string path)
    {
        Row("trace", $"{path}: {profile.SpanMs:F1} ms on the GPU, which was idle for {profile.IdleMs:F1} ms");
        console.Out.WriteLine($"{"ms",10}{"launches",10}  work");
        foreach (var row in profile.ByGroup()) Line(row);
        console.Out.WriteLine($"{"ms",10}{"launches",10}  kernel (the {KernelRows} longest)");
        foreach (var row in profile.ByKernel().Take(KernelRows)) Line(row);
        void Line(StepProfileRow row) => console.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{row.Milliseconds,10:F2}{row.Launches,10}  {row.Group}"));
    }

    private void Row(string name, FormattableString text) => console.Out.WriteLine($"{name,-10}{text.ToString(CultureInfo.InvariantCulture)}");
}
