using Megatron.Client.Jobs;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron sft</c> and <c>megatron pt</c>: prepares the run, submits it to a silo in this process and follows it.</summary>
/// <param name="console">Where to print.</param>
public sealed class TrainCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        options.Environment.RequireOneNode();
        var worldSize = options.Environment.WorldSize;
        var run = RunPreparation.Prepare(options.Config, options.Given, options.Verb == "pt", worldSize, TimeProvider.System);
        foreach (var notice in run.Notices) console.Out.WriteLine(notice);
        console.Out.WriteLine($"output folder: {run.Folder}");

        var environment = RankEnvironment.InProcess(new LibTorchOptions { Folder = options.Environment.LibTorch }, TimeProvider.System, worldSize);
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        using var follower = new JobConsole(console.Out, console.Error, run.Folder, !Console.IsOutputRedirected, TimeZoneInfo.Local);
        return await LocalRun.RunAsync(
            Spec(run, worldSize), SiloOptions.ForLocalJob(worldSize, Path.Combine(run.Folder, "logs")),
            localRank => new RankWorker(localRank, start => new TrainingRun(start, environment)), follower, signals);
    }

    private static JobSpec Spec(PreparedRun run, int worldSize) => new()
    {
        JobId = run.Config.JobId ?? throw new InvalidOperationException("The prepared run has no job id."),
        Name = Path.GetFileName(run.Folder),
        ConfigJson = run.Config.ToJson(),
        WorldSize = worldSize,
        PipelineSize = run.Config.PipelineModelParallelSize,
        OutputFolder = run.Folder,
    };
}
