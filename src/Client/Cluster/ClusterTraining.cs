using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Cluster;

/// <summary>
/// A training that is submitted to running silos and followed. The job belongs to the cluster: Ctrl-C only detaches this console, and whoever
/// submits the same job id again follows the same job.
/// </summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Names folders, times retries.</param>
public sealed class ClusterTraining(CommandConsole console, TimeProvider time)
{
    private const int MaxJobIdLength = 128;

    /// <summary>Submits and follows; returns the exit code of the program, 0 after a detachment.</summary>
    /// <exception cref="ConfigException">The cluster cannot be used, or the run is wrong; nothing was submitted.</exception>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var address = ClusterAddress.Parse(options.Config.Cluster ?? "");
        await using var cluster = await ClusterConnection.OpenAsync(address, time, cancellationToken);
        int worldSize = options.Environment.WorldSize;
        if (options.Config.DryRun)
        {
            var plan = RunPreparation.Check(options.Config, options.Given, options.Verb == "pt", worldSize, time);
            foreach (var line in DryRun.Describe(plan, worldSize)) console.Out.WriteLine(line);
            return ExitCode.Ok;
        }

        var run = RunPreparation.Prepare(options.Config, options.Given, options.Verb == "pt", worldSize, time, options.Config.JobId);
        if (options.Config.JobId is null) run = run with { Config = run.Config with { JobId = NameOf(run.Folder) } };
        using var view = JobView.ForRun(console, run, options.Config.Output);
        view.SayStart(run);
        var spec = JobSpecs.Of(run, worldSize, isElastic: true);
        view.Say($"job: {spec.JobId}");
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellationToken.Register(signals.Raise);
        var job = cluster.Grains.GetGrain<IJobGrain>(spec.JobId);
        var answer = await SubmitAsync(job, spec, cancellationToken);
        if (!answer.Accepted)
        {
            RunFolder.RemoveUnused(run.Folder, run.FirstMadeFolder);
            throw new ConfigException("JOB001", answer.Message);
        }

        int? exitCode = await new ClusterFollower(job, view.Console, time).FollowAsync(signals.StopRequested, signals.Abort);
        if (exitCode is null) Detachment.Say(view, spec.JobId, address);
        else if (exitCode == ExitCode.Ok) view.SayWhereTheResultsAre(run.Folder);
        return exitCode ?? ExitCode.Ok;
    }

    // The submission is repeated until it is answered: the same spec under the same id is one job, however often it arrives.
    private async Task<SubmitResult> SubmitAsync(IJobGrain job, JobSpec spec, CancellationToken cancellation)
    {
        const int MaxAttempts = 20;
        for (int attempt = 1; ; attempt++)
        {
            try
            {
                return await job.Submit(spec);
            }
            catch (Exception fault) when (ClusterFollower.IsLoss(fault) && attempt < MaxAttempts && !cancellation.IsCancellationRequested)
            {
                await Task.Delay(TimeSpan.FromMilliseconds(250), time, cancellation);
            }
        }
    }

    // Two users may save below different folders in the same second: the folder above the version tells the jobs apart.
    private static string NameOf(string runFolder)
    {
        string parent = Path.GetFileName(Path.GetDirectoryName(runFolder)) ?? "";
        string name = string.Create(CultureInfo.InvariantCulture, $"{parent}-{Path.GetFileName(runFolder)}");
        string clean = string.Concat(name.Where(letter => char.IsAsciiLetterOrDigit(letter) || letter is '-' or '_' or '.'));
        return clean.Length <= MaxJobIdLength ? clean : clean[^MaxJobIdLength..];
    }
}

/// <summary>What a console says when it leaves a job that goes on.</summary>
internal static class Detachment
{
    public static void Say(JobView view, string jobId, ClusterAddress address)
    {
        view.Console.Say("Detached: the job goes on.");
        view.Console.Say($"come back: megatron jobs watch {jobId} --cluster {address}");
        view.Console.Say($"stop it:   megatron jobs cancel {jobId} --cluster {address}");
    }
}
