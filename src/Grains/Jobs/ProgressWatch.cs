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

    public ProgressWatch(JobTimings timings) => this.timings = timings;

    /// <summary>A step was reported; the first ones warm caches up and are not in the mean.</summary>
    public void OnStep(TimeSpan stepTime, long now)
    {
        (lastAt, activity) = (now, null);
        if (++numSteps > NumWarmupSteps)
            mean = mean == TimeSpan.Zero ? stepTime : mean * (1 - Weight) + stepTime * Weight;
    }

    /// <summary>The ranks do something that takes longer than a step, a save or an evaluation, until the next step.</summary>
    public void OnBusy(string what, long now) => (lastAt, activity) = (now, what);

    /// <summary>How long the ranks of the attempt may take to end after an abort.</summary>
    public TimeSpan ClearingLimit => numSteps <= NumWarmupSteps ? timings.ClearingAtStart : mean * MeanFactor > timings.Clearing ? mean * MeanFactor : timings.Clearing;

    /// <summary>Why the attempt counts as stuck; null while it does not.</summary>
    /// <param name="now">Timestamp of <paramref name="time"/>.</param>
    public string? Judge(TimeProvider time, long now)
    {
        if (numSteps <= NumWarmupSteps)
            return null;
        var limit = activity is not null ? timings.BusyLimit : mean * MeanFactor > timings.LeastStepLimit ? mean * MeanFactor : timings.LeastStepLimit;
        var waited = time.GetElapsedTime(lastAt, now);
        return waited <= limit ? null : FormattableString.Invariant(
            $"no rank has finished {activity ?? "a step"} for {waited.TotalSeconds:F1} s (mean step {mean.TotalSeconds:F2} s, limit {limit.TotalSeconds:F1} s)");
    }
}

/// <summary>The watch of the newest attempt; that of an older one is forgotten.</summary>
/// <param name="timings">Limits.</param>
public sealed class ProgressWatches(JobTimings timings)
{
    private int newest = -1;
    private ProgressWatch watch = new(timings);

    /// <summary>The watch of an attempt.</summary>
    public ProgressWatch Of(int attempt)
    {
        if (attempt > newest)
            (newest, watch) = (attempt, new ProgressWatch(timings));
        return attempt == newest ? watch : new ProgressWatch(timings);
    }

    /// <summary>As <see cref="ProgressWatch.Judge"/>; null for an attempt that has reported nothing.</summary>
    public string? Judge(int attempt, TimeProvider time, long now) => attempt == newest ? watch.Judge(time, now) : null;
}
