using System.Collections.Immutable;

namespace Megatron.Grains.Jobs;

/// <summary>How long a job grain waits before it acts by itself.</summary>
public sealed record JobTimings
{
    /// <summary>How often a living job looks at its clock.</summary>
    public TimeSpan Tick { get; init; } = TimeSpan.FromMilliseconds(250);

    /// <summary>
    /// How long the ranks of a faulted attempt have to end, and three mean steps if that is longer: a rank that computes hears of an abort only at its
    /// next collective. Those that do not end are left behind.
    /// </summary>
    public TimeSpan Clearing { get; init; } = TimeSpan.FromSeconds(4);

    /// <summary>The same for an attempt whose steps are not known yet: its ranks may be reading a large model.</summary>
    public TimeSpan ClearingAtStart { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>How often a job that waits for devices asks again, whatever it was told.</summary>
    public TimeSpan Retry { get; init; } = TimeSpan.FromSeconds(2);

    /// <summary>
    /// When a job looks again, after the loss of a silo, whether its grains still know of it: with a silo goes a part of the grain directory, and whoever was
    /// registered there ends a little later, wherever it is.
    /// </summary>
    public ImmutableArray<TimeSpan> LooksAfterLoss { get; init; } = [TimeSpan.FromSeconds(1), TimeSpan.FromSeconds(3), TimeSpan.FromSeconds(8)];

    /// <summary>A step that takes longer than this, and than three mean steps, is a fault, which is found two ticks before that.</summary>
    public TimeSpan LeastStepLimit { get; init; } = TimeSpan.FromSeconds(3);

    /// <summary>The longest that a save, an evaluation or one of the first steps may take.</summary>
    public TimeSpan BusyLimit { get; init; } = TimeSpan.FromMinutes(30);
}
