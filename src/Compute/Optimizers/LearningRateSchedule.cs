namespace Megatron.Compute.Optimizers;

/// <summary>How the learning rate falls after warm-up.</summary>
public enum LearningRateDecay
{
    /// <summary>Stays at the peak.</summary>
    Constant,

    /// <summary>A straight line to the floor.</summary>
    Linear,

    /// <summary>Half a cosine to the floor (arXiv 1608.03983, equation 5, one cycle).</summary>
    Cosine,

    /// <summary>Peak · √warm-up / √samples, not below the floor (arXiv 1706.03762, section 5.3).</summary>
    InverseSquareRoot,

    /// <summary>Warm-up, stable, decay (arXiv 2404.06395, section 4): the peak, then an anneal over the last samples.</summary>
    WarmupStableDecay,
}

/// <summary>Shape of the anneal of <see cref="LearningRateDecay.WarmupStableDecay"/>, as the share of peak − floor left at progress r.</summary>
public enum AnnealShape
{
    /// <summary>2·0.5^r − 1.</summary>
    Exponential,

    /// <summary>1 − r.</summary>
    Linear,

    /// <summary>½(1 + cos πr).</summary>
    Cosine,

    /// <summary>1 − √r.</summary>
    MinusSquareRoot,
}

/// <summary>Settings of a <see cref="LearningRateSchedule"/> (megatron-swift 1.2).</summary>
public sealed record LearningRateOptions
{
    /// <summary>Peak.</summary>
    public required double Lr { get; init; }

    /// <summary>Floor, at most <see cref="Lr"/>.</summary>
    public required double MinLr { get; init; }

    public required LearningRateDecay DecayStyle { get; init; }

    /// <summary>Length of the whole schedule in iterations, warm-up included.</summary>
    public required long DecayIters { get; init; }

    /// <summary>Warm-up in iterations; ignored when <see cref="WarmupFraction"/> is set.</summary>
    public required long WarmupIters { get; init; }

    /// <summary>Warm-up as a share of the schedule, in [0, 1).</summary>
    public double? WarmupFraction { get; init; }

    /// <summary>Where warm-up starts.</summary>
    public double InitLr { get; init; }

    /// <summary>Samples per optimizer step: the schedule is counted in samples.</summary>
    public required int GlobalBatchSize { get; init; }

    /// <summary>Iterations of the anneal at the end; used by <see cref="LearningRateDecay.WarmupStableDecay"/> only.</summary>
    public long AnnealIters { get; init; }

    /// <summary>Used by <see cref="LearningRateDecay.WarmupStableDecay"/> only.</summary>
    public AnnealShape AnnealShape { get; init; }
}

/// <summary>
/// The learning rate of every step: a pure function of the samples consumed before it (numerics 3.9), so resuming needs no state.
/// </summary>
public sealed class LearningRateSchedule
{
    private readonly LearningRateOptions options;
    private readonly double warmupSamples;
    private readonly double decaySamples;
    private readonly double annealSamples;

    /// <exception cref="ArgumentException">Warm-up is not shorter than the schedule, or the floor lies above the peak.</exception>
    public LearningRateSchedule(LearningRateOptions options)
    {
        this.options = options;
        decaySamples = (double)options.DecayIters * options.GlobalBatchSize;
        warmupSamples = options.WarmupFraction is { } fraction ? fraction * decaySamples : (double)options.WarmupIters * options.GlobalBatchSize;
        annealSamples = (double)options.AnnealIters * options.GlobalBatchSize;
        if (warmupSamples >= decaySamples)
            throw new ArgumentException(FormattableString.Invariant(
                $"Warm-up of {warmupSamples} samples is not shorter than the schedule of {decaySamples}; lower lr_warmup_iters or raise lr_decay_iters."));
        if (options.MinLr > options.Lr)
            throw new ArgumentException(FormattableString.Invariant($"min_lr {options.MinLr} is above lr {options.Lr}; lower it."));
    }

    /// <summary>The rate used in optimizer step <paramref name="iteration"/> (1-based): with warm-up the first step runs at 0.</summary>
    public double At(long iteration) => AtSamples((iteration - 1.0) * options.GlobalBatchSize);

    /// <summary>The rate after <paramref name="samples"/> consumed samples.</summary>
    public double AtSamples(double samples)
    {
        var (peak, floor) = (options.Lr, options.MinLr);
        if (warmupSamples > 0 && samples <= warmupSamples) return options.InitLr + (peak - options.InitLr) * samples / warmupSamples;
        if (options.DecayStyle == LearningRateDecay.Constant) return peak;
        if (samples > decaySamples) return floor;
        if (options.DecayStyle == LearningRateDecay.InverseSquareRoot)
            return Math.Max(floor, peak * Math.Sqrt(Math.Max(warmupSamples, 1)) / Math.Sqrt(Math.Max(samples, 1)));
        var progress = (samples - warmupSamples) / (decaySamples - warmupSamples);
        var share = options.DecayStyle switch
        {
            LearningRateDecay.Linear => 1 - progress,
            LearningRateDecay.Cosine => 0.5 * (1 + Math.Cos(Math.PI * progress)),
            LearningRateDecay.WarmupStableDecay => AnnealShare(samples),
            _ => throw new InvalidOperationException($"Unknown decay style {options.DecayStyle}."),
        };
        return floor + share * (peak - floor);
    }

    private double AnnealShare(double samples)
    {
        var begin = decaySamples - annealSamples;
        if (samples <= begin) return 1;
        var progress = (samples - begin) / annealSamples;
        return options.AnnealShape switch
        {
            AnnealShape.Exponential => 2 * Math.Pow(0.5, progress) - 1,
            AnnealShape.Linear => 1 - progress,
            AnnealShape.Cosine => 0.5 * (1 + Math.Cos(Math.PI * progress)),
            AnnealShape.MinusSquareRoot => 1 - Math.Sqrt(progress),
            _ => throw new InvalidOperationException($"Unknown anneal shape {options.AnnealShape}."),
        };
    }
}
