using System.Collections.Immutable;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Stages;

namespace Megatron.Grains.Jobs;

/// <summary>Where a job is in its life.</summary>
public enum JobPhase
{
    /// <summary>No spec was submitted under this id.</summary>
    Unknown,

    /// <summary>Accepted, not yet placed on devices.</summary>
    Queued,

    /// <summary>Start commands are out; not every rank has built its model.</summary>
    Starting,

    /// <summary>All ranks run.</summary>
    Running,

    /// <summary>An operating fault ended the attempt; its ranks are being cleared before the next attempt starts.</summary>
    Recovering,

    /// <summary>The training reached its end.</summary>
    Completed,

    /// <summary>The job cannot go on.</summary>
    Failed,

    /// <summary>The job ended because somebody asked for it.</summary>
    Cancelled,
}

/// <summary>What has been asked of a running job.</summary>
public enum StopIntent
{
    /// <summary>Nothing: train to the end.</summary>
    None,

    /// <summary>Finish the step, save a checkpoint, stop.</summary>
    Save,

    /// <summary>Finish the step and stop without saving.</summary>
    Discard,

    /// <summary>Stop at once.</summary>
    Abort,

    /// <summary>Not the user's wish: finish the step, save, and start again on other devices, because a node leaves or came back.</summary>
    Relocate,
}

/// <summary>How a job ended.</summary>
/// <param name="ExitCode">0 completed or stopped as asked, 1 failed, 2 a mistake of the user.</param>
/// <param name="Message">One sentence for the user.</param>
[GenerateSerializer, Immutable]
public sealed record JobOutcome([property: Id(0)] int ExitCode, [property: Id(1)] string Message);

/// <summary>The newest checkpoint that has its final name.</summary>
[GenerateSerializer, Immutable]
public sealed record CommittedCheckpoint([property: Id(0)] long Iteration, [property: Id(1)] string Folder)
{
    /// <summary>Set when the ranks did not save it themselves: which snapshot it was, and who held that.</summary>
    [Id(2)] public string? Source { get; init; }
}

/// <summary>
/// The durable state of a job. Changed only by <see cref="JobTransitions.Next"/>; written to storage whenever something other than
/// <see cref="LastIteration"/> changed.
/// </summary>
[GenerateSerializer, Immutable]
public sealed record JobState
{
    /// <summary>The state of an id that nobody has submitted.</summary>
    public static JobState Empty { get; } = new();

    [Id(0)] public JobSpec? Spec { get; init; }

    [Id(1)] public JobPhase Phase { get; init; }

    /// <summary>The fence: 0 before the first start, one more for each attempt.</summary>
    [Id(2)] public int Attempt { get; init; }

    /// <summary>Placement of the current attempt, null before the first launch.</summary>
    [Id(3)] public LaunchPlan? Plan { get; init; }

    [Id(4)] public StopIntent Stop { get; init; }

    /// <summary>Ranks of this attempt that have built their model.</summary>
    [Id(5)] public ImmutableSortedSet<int> StartedRanks { get; init; } = [];

    /// <summary>Ranks of this attempt that have ended, well or badly.</summary>
    [Id(6)] public ImmutableSortedSet<int> EndedRanks { get; init; } = [];

    /// <summary>Hash of the data plan of the first rank that started; all others must agree (DESIGN D12).</summary>
    [Id(7)] public ulong? DataPlanHash { get; init; }

    /// <summary>Last optimizer step that the last stage reported.</summary>
    [Id(8)] public long LastIteration { get; init; }

    /// <summary>First optimizer step of this attempt.</summary>
    [Id(9)] public long FirstIteration { get; init; }

    [Id(10)] public CommittedCheckpoint? Checkpoint { get; init; }

    /// <summary>True when every rank that ended so far did all its steps.</summary>
    [Id(11)] public bool ReachedEnd { get; init; } = true;

    [Id(12)] public JobOutcome? Outcome { get; init; }

    [Id(13)] public DateTimeOffset SubmittedAt { get; init; }

    [Id(14)] public DateTimeOffset? EndedAt { get; init; }

    /// <summary>Why the job is where it is; shown to the user.</summary>
    [Id(15)] public string Reason { get; init; } = "";

    /// <summary>Restarts after operating faults since a checkpoint was committed; compared with <see cref="JobSpec.MaxRestarts"/>.</summary>
    [Id(16)] public int NumFutileRestarts { get; init; }

    /// <summary>True when this attempt has lost a silo: its end is not counted as a futile restart.</summary>
    [Id(17)] public bool HasLostSilo { get; init; }

    /// <summary>Devices that were lost or are stuck, by the silo that owned them: a restarted silo offers them again.</summary>
    [Id(18)] public ImmutableArray<ClusterDevice> Excluded { get; init; } = [];

    /// <summary>One more with each stored change; orders what the job directory hears.</summary>
    [Id(19)] public long Revision { get; init; }

    /// <summary>Sequence number that the next activation's events begin after.</summary>
    [Id(20)] public long EventBase { get; init; }

    /// <summary>The newest attempt after whose end it was found out what is left of its snapshots.</summary>
    [Id(21)] public int SettledAttempt { get; init; }

    /// <summary>True when an operating fault ended the attempt and every rank of it has ended.</summary>
    public bool IsCleared => Phase is JobPhase.Recovering && EndedRanks.Count == (Plan?.WorldSize ?? 0);

    /// <summary>True while the snapshots of a cleared attempt are being looked for and written.</summary>
    public bool AwaitsSnapshot => IsCleared && Spec is { TakesSnapshots: true } && SettledAttempt < Attempt;

    /// <summary>True when devices for the next attempt are being looked for.</summary>
    public bool IsWaiting => Phase is JobPhase.Queued || (IsCleared && !AwaitsSnapshot);

    /// <summary>True when the job has ended, whichever way.</summary>
    public bool IsTerminal => Phase is JobPhase.Completed or JobPhase.Failed or JobPhase.Cancelled;

    /// <summary>The attempt in hand as messages carry it.</summary>
    public AttemptId AttemptId => new(Spec?.JobId ?? "", Attempt);
}

/// <summary>What a client sees of a job.</summary>
[GenerateSerializer, Immutable]
public sealed record JobStatus
{
    [Id(0)] public required string JobId { get; init; }

    [Id(1)] public required string Name { get; init; }

    [Id(2)] public required JobPhase Phase { get; init; }

    [Id(3)] public required int Attempt { get; init; }

    [Id(4)] public required long LastIteration { get; init; }

    [Id(5)] public CommittedCheckpoint? Checkpoint { get; init; }

    [Id(6)] public JobOutcome? Outcome { get; init; }

    /// <summary>Messages of older attempts, or repeated ones, that were ignored.</summary>
    [Id(7)] public long NumStaleMessages { get; init; }

    /// <summary>Why the job is where it is: the plan, what was lost, what it waits for.</summary>
    [Id(8)] public string Reason { get; init; } = "";

    /// <summary>Placement of the newest attempt; null before the first launch.</summary>
    [Id(9)] public LaunchPlan? Plan { get; init; }

    /// <summary>What was submitted; null for an id that nobody submitted.</summary>
    [Id(10)] public JobSpec? Spec { get; init; }

    [Id(11)] public DateTimeOffset SubmittedAt { get; init; }

    [Id(12)] public DateTimeOffset? EndedAt { get; init; }

    /// <summary>The newest step of each pipeline stage that has reported one to this activation of the job.</summary>
    [Id(13)] public ImmutableArray<StageStatus> Stages { get; init; } = [];

    /// <summary>Another value when the job's grain has moved: who still watches the one before hears nothing more.</summary>
    [Id(14)] public Guid Activation { get; init; }
}
