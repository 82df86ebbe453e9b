using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>Shows a submitted job until it has ended and turns the user's signals into requests to it.</summary>
public static class JobFollower
{
    /// <summary>Exit code after the second signal, as shells give it to an interrupted program.</summary>
    public const int ExitAborted = 130;

    /// <summary>Follows the job from its first event on; returns the exit code of the program.</summary>
    public static async Task<int> FollowAsync(IJobGrain job, IJobConsole console, StopSignals signals)
    {
        var showing = ShowEventsAsync(job, console, signals.Abort);
        try
        {
            if (await Task.WhenAny(showing, signals.StopRequested) != showing)
            {
                console.Say("Stopping: the step in hand is finished and a checkpoint saved. Signal again to leave at once without saving.");
                await job.Cancel(save: true).WaitAsync(signals.Abort);
            }
            await showing;
        }
        catch (OperationCanceledException) when (signals.Abort.IsCancellationRequested)
        {
            console.SayError("Aborted: nothing was saved since the last checkpoint.");
            await AbortAsync(job, console);
            return ExitAborted;
        }
        var status = await job.GetStatus();
        return status.Outcome?.ExitCode ?? JobTransitions.ExitFailed;
    }

    private static async Task AbortAsync(IJobGrain job, IJobConsole console)
    {
        try
        {
            await job.Cancel(save: false);
        }
        catch (Exception fault) when (fault is TimeoutException or OrleansException)
        {
            console.SayError("The job did not answer: " + fault.Message);
        }
    }

    private static async Task ShowEventsAsync(IJobGrain job, IJobConsole console, CancellationToken cancellation)
    {
        await foreach (var item in job.Watch(1, cancellation).WithCancellation(cancellation))
            console.Show(item);
    }
}
