using Megatron.Client.Cluster;
using Megatron.Client.Jobs;
using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron sft</c> and <c>megatron pt</c>: prepares the run, submits it and follows it. Where to: the cluster of <c>--cluster</c>, the
/// nodes of NNODES, or a silo in this process.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class TrainCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        bool isOnCluster = options.Config.Cluster is { Length: > 0 };
        if (options.Config.DryRun && !isOnCluster) return DescribeAsync(options);
        if (isOnCluster) return new ClusterTraining(console, TimeProvider.System).RunAsync(options, cancellationToken);
        return options.Environment.Nodes > 1
            ? new NodeTraining(console, TimeProvider.System).RunAsync(options, cancellationToken)
            : RunHereAsync(options, cancellationToken);
    }

    private Task<int> DescribeAsync(ParsedOptions options)
    {
        var worldSize = options.Environment.WorldSize;
        var plan = RunPreparation.Check(options.Config, options.Given, options.Verb == "pt", worldSize, TimeProvider.System);
        foreach (var line in DryRun.Describe(plan, worldSize)) console.Out.WriteLine(line);
        return Task.FromResult(ExitCode.Ok);
    }

    private async Task<int> RunHereAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var worldSize = options.Environment.WorldSize;
        var run = RunPreparation.Prepare(options.Config, options.Given, options.Verb == "pt", worldSize, TimeProvider.System);
        using var view = JobView.ForRun(console, run, options.Config.Output);
        view.SayStart(run);
        var environment = RankEnvironment.InProcess(new LibTorchOptions { Folder = options.Environment.LibTorch }, TimeProvider.System, worldSize);
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        var exitCode = await LocalRun.RunAsync(
            JobSpecs.Of(run, worldSize, isElastic: false), SiloOptions.ForLocalJob(worldSize, Path.Combine(run.Folder, "logs")),
            services =>
            {
                var here = environment with { Snapshots = services.Snapshots };
                return localRank => new RankWorker(localRank, start => new TrainingRun(start, here));
            }, view.Console, signals);
        if (exitCode == ExitCode.Ok) view.SayWhereTheResultsAre(run.Folder);
        if (exitCode == ExitCode.BadInput) RunFolder.RemoveUnused(run.Folder, run.FirstMadeFolder);
        return exitCode;
    }
}
