using System.Globalization;
using Megatron.Client.Jobs;
using Megatron.Grains.Jobs;
using Orleans.Runtime.Messaging;

namespace Megatron.Client.Cluster;

/// <summary>
/// Shows a job of a cluster until it has ended. The job may lose any silo meanwhile, also the one that hosts its grain or the console's gateway:
/// then the follower looks for the job until it answers again and goes on after the last event it has shown.
/// </summary>
/// <param name="job">The job.</param>
/// <param name="console">Where it is shown.</param>
/// <param name="time">Clock of the retries.</param>
public sealed class ClusterFollower(IJobGrain job, IJobConsole console, TimeProvider time)
{
    private static readonly TimeSpan retryDelay = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan checkInterval = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan answerTimeout = TimeSpan.FromSeconds(2);

    private long lastShown;
    private int? exitCode;

    /// <summary>
    /// Follows from the first event that the job still has. Returns the exit code of the job, or null when <paramref name="detach"/> completed
    /// first: the job then goes on without this console.
    /// </summary>
    public async Task<int?> FollowAsync(Task detach, CancellationToken cancellation)
    {
        using var stop = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        var showing = ShowToTheEndAsync(stop.Token);
        if (await Task.WhenAny(showing, detach) == showing)
            return await showing;
        await stop.CancelAsync();
        try
        {
            return await showing;
        }
        catch (OperationCanceledException)
        {
            return null;
        }
    }

    private async Task<int> ShowToTheEndAsync(CancellationToken cancellation)
    {
        var status = await FindAsync(cancellation);
        while (true)
        {
            string loss = await WatchAsync(status.Activation, cancellation);
            if (exitCode is { } code) return code;
            var lostAt = time.GetTimestamp();
            status = await FindAsync(cancellation);
            if (loss.Length == 0 && status.Outcome is { } outcome) return outcome.ExitCode; // it says no more, for instance after its end was shown
            if (loss.Length == 0) continue;
            console.Say(string.Create(CultureInfo.InvariantCulture,
                $"connection to the job lost ({loss}); found again after {time.GetElapsedTime(lostAt).TotalSeconds:F1} s: {Describe(status)}"));
        }
    }

    // One watch, until the job has ended or the watch breaks; says why it broke.
    private async Task<string> WatchAsync(Guid activation, CancellationToken cancellation)
    {
        using var stalled = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        var guard = CancelWhenLostAsync(activation, stalled);
        try
        {
            await foreach (var item in job.Watch(lastShown + 1, stalled.Token).WithCancellation(stalled.Token))
            {
                console.Show(item);
                lastShown = Math.Max(lastShown, item.Sequence);
                if (item is JobPhaseChanged { Outcome: { } outcome }) exitCode = outcome.ExitCode;
            }
            return "";
        }
        catch (Exception fault) when (!cancellation.IsCancellationRequested && IsLoss(fault))
        {
            return stalled.IsCancellationRequested ? await guard : OneLine(fault.Message);
        }
        finally
        {
            await stalled.CancelAsync();
            await guard;
        }
    }

    // A call into a silo that is gone or hangs would wait for its whole response timeout: two unanswered questions end the watch earlier, and so does an
    // answer of another activation, or one after an unanswered question. Returns why, when the console should say it.
    private async Task<string> CancelWhenLostAsync(Guid activation, CancellationTokenSource stalled)
    {
        int numMissed = 0;
        try
        {
            while (numMissed < 2)
            {
                await Task.Delay(checkInterval, time, stalled.Token);
                try
                {
                    var status = await job.GetStatus().WaitAsync(answerTimeout, time, stalled.Token);
                    if (status.Activation != activation)
                    {
                        await stalled.CancelAsync();
                        return "its grain has moved to another silo";
                    }
                    if (numMissed > 0)
                    {
                        await stalled.CancelAsync(); // what the watch asked through the gateway that was silent may never be answered
                        return "";
                    }
                }
                catch (Exception fault) when (IsLoss(fault) && !stalled.IsCancellationRequested)
                {
                    numMissed++;
                }
            }
            await stalled.CancelAsync();
        }
        catch (OperationCanceledException) when (stalled.IsCancellationRequested)
        {
            // The watch has ended.
        }
        return "the job did not answer";
    }

    private async Task<JobStatus> FindAsync(CancellationToken cancellation)
    {
        while (true)
        {
            try
            {
                return await job.GetStatus().WaitAsync(answerTimeout, time, cancellation);
            }
            catch (Exception fault) when (IsLoss(fault) && !cancellation.IsCancellationRequested)
            {
                await Task.Delay(retryDelay, time, cancellation);
            }
        }
    }

    internal static bool IsLoss(Exception fault) =>
        fault is OrleansException or EnumerationAbortedException or TimeoutException or ConnectionFailedException or OperationCanceledException
            or IOException or ObjectDisposedException;

    private static string Describe(JobStatus status) => string.Create(CultureInfo.InvariantCulture,
        $"{status.Phase.ToString().ToLowerInvariant()}, attempt {status.Attempt}, after step {status.LastIteration}");

    private static string OneLine(string message)
    {
        string line = message.Split('\n')[0].Trim().TrimEnd('.');
        return line.Length <= 160 ? line : line[..160] + "…";
    }
}
