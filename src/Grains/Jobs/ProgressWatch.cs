namespace Megatron.Grains.Jobs;

/// <summary>
/// Compares the time since the last step of an attempt with the moving average of its own steps: a silo may look healthy while its compute
/// thread hangs. Plain state, with the time as an argument.
/// </summary>
public sealed class ProgressWatch
{
    private const int NumWarmupSteps = 2;
    private const double Weight = 0.2;
    private const double MeanFactor = 3;

    private readonly JobTimings timings;
    private long lastAt;
    private int numSteps;
    private TimeSpan mean;
    private string? activity;

    /// <param name="timings">Limits.</param>
    /// <param name="now">When the attempt was first seen.</param>
    public ProgressWatch(JobTimings timings, long now) => (this.timings, lastAt) = (timings, now);

    /// <summary>A step was reported; the first ones warm caches up and are not in the mean.</summary>
    public void OnStep(TimeSpan stepTime, long now)
    {
        (lastAt, activity) = (now, null);
        if (++numSteps > NumWarmupSteps)
            mean = mean == TimeSpan.Zero ? stepTime : mean * (1 - Weight) + stepTime * Weight;
    }

    /// <summary>The ranks begin something that takes longer than a step, a save or an evaluation; null: steps go on.</summary>
    public void OnBusy(string? what, long now) => (lastAt, activity) = (now, what);

    /// <summary>How long the ranks of the attempt may take to end after an abort.</summary>
    public TimeSpan ClearingLimit => IsMeanKnown ? AtLeast(timings.Clearing) : timings.ClearingAtStart;

    private bool IsMeanKnown => numSteps > NumWarmupSteps;

    /// <summary>Why the attempt counts as stuck; null while it does not.</summary>
    /// <param name="now">Timestamp of <paramref name="time"/>.</param>
    public string? Judge(TimeProvider time, long now)
    {
        // The verdict must fall before the time is over: the clock is looked at now and then only, and the news of the last step was late.
        var limit = activity is null && IsMeanKnown ? AtLeast(timings.LeastStepLimit) - 2 * timings.Tick : timings.BusyLimit;
        var waited = time.GetElapsedTime(lastAt, now);
        return waited <= limit ? null : FormattableString.Invariant(
            $"no rank has finished {activity ?? "a step"} for {waited.TotalSeconds:F1} s (mean step {mean.TotalSeconds:F2} s, limit {limit.TotalSeconds:F1} s)");
    }

    private TimeSpan AtLeast(TimeSpan least) => mean * MeanFactor > least ? mean * MeanFactor : least;
}

/// <summary>The watch of the newest attempt; that of an older one is forgotten.</summary>
/// <param name="timings">Limits.</param>
public sealed class ProgressWatches(JobTimings timings)
{
    private int newest = -1;
    private ProgressWatch watch = new(timings, 0);

    /// <summary>The watch of an attempt, which begins now if it was not known.</summary>
    public ProgressWatch Of(int attempt, long now)
    {
        if (attempt > newest)
            (newest, watch) = (attempt, new ProgressWatch(timings, now));
        return attempt == newest ? watch : new ProgressWatch(timings, now);
    }
}
