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
        var isJson = options.Config.Output == "json";
        var lines = isJson ? console.Error : console.Out;
        if (options.Config.DryRun)
        {
            var plan = RunPreparation.Check(options.Config, options.Given, options.Verb == "pt", worldSize, TimeProvider.System);
            foreach (var line in DryRun.Describe(plan, worldSize)) console.Out.WriteLine(line);
            return ExitCode.Ok;
        }

        var run = RunPreparation.Prepare(options.Config, options.Given, options.Verb == "pt", worldSize, TimeProvider.System);
        foreach (var notice in run.Notices) lines.WriteLine(notice);
        lines.WriteLine($"output folder: {run.Folder}");
        var exitCode = await FollowAsync(options, run, worldSize, isJson, cancellationToken);
        if (exitCode == ExitCode.BadInput) RunFolder.RemoveUnused(run.Folder, run.FirstMadeFolder);
        return exitCode;
    }

    private async Task<int> FollowAsync(ParsedOptions options, PreparedRun run, int worldSize, bool isJson, CancellationToken cancellationToken)
    {
        var environment = RankEnvironment.InProcess(new LibTorchOptions { Folder = options.Environment.LibTorch }, TimeProvider.System, worldSize);
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        using var text = new JobConsole(
            isJson ? TextWriter.Null : console.Out, console.Error, RunLogOptions.Of(run.Config, run.Folder), Console.IsOutputRedirected ? null : Console.WindowWidth, TimeZoneInfo.Local);
        IJobConsole follower = isJson ? new JobEventLines(console.Out, text, TimeProvider.System) : text;
        var exitCode = await LocalRun.RunAsync(
            Spec(run, worldSize), SiloOptions.ForLocalJob(worldSize, Path.Combine(run.Folder, "logs")),
            localRank => new RankWorker(localRank, start => new TrainingRun(start, environment)), follower, signals);
        if (exitCode == ExitCode.Ok && !isJson)
        {
            console.Out.WriteLine($"checkpoints, args.json and logging.jsonl: {run.Folder}");
            console.Out.WriteLine($"talk to the model: megatron infer --model {run.Folder} --stream");
        }
        return exitCode;
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
