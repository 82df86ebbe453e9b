using Megatron.Compute.Training;
using Megatron.Grains;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Jobs;

/// <summary>
/// A job on this machine: a silo in this process, the job submitted to it and followed to its end. The same path as on a cluster, but for where
/// the silo runs (DESIGN D3).
/// </summary>
public static class LocalRun
{
    private static readonly TimeSpan abortGrace = TimeSpan.FromSeconds(5);

    /// <summary>
    /// Runs the job; returns the exit code: 0 completed, or stopped as asked and saved; 1 failed; 2 a mistake of the user; 130 aborted by a second
    /// signal. After 130 a worker thread may still be busy: the caller ends the process.
    /// </summary>
    /// <param name="workers">As for the silo: makes the worker of a device when its rank starts; a <c>ConfigException</c> it throws ends the job with 2.</param>
    public static async Task<int> RunAsync(
        JobSpec spec, SiloOptions options, Func<RankServices, Func<int, IRankWorker>> workers, IJobConsole console, StopSignals signals)
    {
        var silo = await SiloHost.StartAsync(options, workers);
        var job = silo.Grains.GetGrain<IJobGrain>(spec.JobId);
        int exitCode = JobTransitions.ExitFailed;
        try
        {
            exitCode = await SubmitAndFollowAsync(job, spec, console, signals);
        }
        finally
        {
            await EndAsync(silo, job, exitCode);
        }
        return exitCode;
    }

    private static async Task<int> SubmitAndFollowAsync(IJobGrain job, JobSpec spec, IJobConsole console, StopSignals signals)
    {
        var answer = await job.Submit(spec);
        if (answer.Accepted)
            return await JobFollower.FollowAsync(job, console, signals);
        console.SayError(answer.Message);
        return JobTransitions.ExitUserError;
    }

    private static async Task EndAsync(SiloHost silo, IJobGrain job, int exitCode)
    {
        if (exitCode != JobFollower.ExitAborted)
            await silo.DisposeAsync();
        else
            await Task.WhenAny(EndAbortedAsync(silo, job), Task.Delay(abortGrace));
    }

    // The abort is still on its way to the ranks, which a silo that ends at once would cut short. A rank that hangs in a collective never answers: the
    // grace is over then and the process ends.
    private static async Task EndAbortedAsync(SiloHost silo, IJobGrain job)
    {
        await foreach (var _ in job.Watch(1))
        {
        }
        await silo.DisposeAsync();
    }
}
