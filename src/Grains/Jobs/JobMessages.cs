using System.Collections.Immutable;

namespace Megatron.Grains.Jobs;

/// <summary>Something that happened and may move a job. Inputs of an attempt other than the current one are stale.</summary>
public abstract record JobInput
{
    /// <summary>A client submitted the job.</summary>
    public sealed record Submitted(JobSpec Spec) : JobInput;

    /// <summary>A client asked for the end.</summary>
    public sealed record CancelRequested(bool Save) : JobInput;

    /// <summary>The planner placed the job.</summary>
    public sealed record LaunchPlanned(LaunchPlan Plan, string Reason) : JobInput;

    /// <summary>The planner found no placement.</summary>
    public sealed record LaunchRefused(string Reason) : JobInput;

    /// <summary>Nothing fits now; the pool has put the job into its queue.</summary>
    public sealed record LaunchWaiting(string Reason) : JobInput;

    /// <summary>It may be worth asking the planner again: devices came free, or some time has passed.</summary>
    public sealed record LaunchRetried : JobInput;

    /// <summary>The job's grain was activated on another silo with the stored state: whatever was under way may have been cut short.</summary>
    public sealed record Reactivated : JobInput;

    /// <summary>The control plane saw that the attempt cannot go on, whoever is to blame: two ranks disagree.</summary>
    public sealed record AttemptFailed(int Attempt, string Reason) : JobInput;

    /// <summary>An operating fault of the attempt as a whole: a start was not delivered, or no rank makes progress.</summary>
    public sealed record AttemptFaulted(int Attempt, string Reason) : JobInput;

    /// <summary>The silos of some ranks have left the cluster.</summary>
    public sealed record SilosLost(int Attempt, IReadOnlyCollection<string> Active) : JobInput;

    /// <summary>Answer to <see cref="JobAction.RestoreSnapshot"/>.</summary>
    /// <param name="Checkpoint">A snapshot that is on disk now; null when there is none.</param>
    /// <param name="Problem">Why those that are left cannot be used; null when there are none.</param>
    public sealed record SnapshotSettled(int Attempt, CommittedCheckpoint? Checkpoint, string? Problem) : JobInput;

    /// <summary>Ranks of a cleared attempt have not ended in time.</summary>
    public sealed record ClearingTimedOut(int Attempt) : JobInput;

    /// <summary>The ranks should save, end and start again elsewhere: a silo leaves, or devices for more replicas are free.</summary>
    /// <param name="LeavingSilo">The silo that leaves; null when none does.</param>
    public sealed record Relocation(int Attempt, string? LeavingSilo, string Reason) : JobInput;

    /// <summary>A rank has built its model.</summary>
    public sealed record RankStarted(int Attempt, int Rank, long FirstIteration, ulong DataPlanHash) : JobInput;

    /// <summary>The last stage finished an optimizer step.</summary>
    public sealed record StepDone(int Attempt, long Iteration) : JobInput;

    /// <summary>A checkpoint got its final name.</summary>
    public sealed record CheckpointCommitted(int Attempt, CommittedCheckpoint Checkpoint) : JobInput;

    /// <summary>A rank ended as asked or because its work is done.</summary>
    public sealed record RankFinished(int Attempt, int Rank, long LastIteration, bool Completed) : JobInput;

    /// <summary>A rank cannot go on.</summary>
    public sealed record RankFaulted(int Attempt, int Rank, string Message, bool IsUserError) : JobInput;
}

/// <summary>What the job grain must do after a transition, in the order given, once the new state is stored.</summary>
public abstract record JobAction
{
    /// <summary>Ask the planner; answer with <see cref="JobInput.LaunchPlanned"/> or <see cref="JobInput.LaunchRefused"/>.</summary>
    public sealed record PlanLaunch : JobAction;

    /// <summary>Find the newest snapshot that the ranks of the attempt left and write it, beside the job's turns; answered by <see cref="JobInput.SnapshotSettled"/>.</summary>
    public sealed record RestoreSnapshot : JobAction;

    /// <summary>Take up the ranks of the attempt again: grains that stand between them and the job may have moved and know nothing.</summary>
    public sealed record AttachRanks : JobAction;

    /// <summary>Ask silos whose ranks did not end to restart: a thread that hangs in native code cannot be freed otherwise.</summary>
    public sealed record RestartSilos(ImmutableArray<string> Silos, string Reason) : JobAction;

    /// <summary>Start every rank of the state's plan under the state's attempt.</summary>
    /// <param name="IsRepeated">Some of them may run already: those that have met must not be given another place to meet.</param>
    public sealed record StartRanks(string? LoadFolder, bool IsRepeated = false) : JobAction;

    /// <summary>Ask every rank of the attempt to stop after its step.</summary>
    /// <param name="IsRepeated">The ranks have probably been asked before: one that is not reached is asked once more, and is no fault.</param>
    public sealed record StopRanks(bool SaveCheckpoint, string Reason, bool IsRepeated = false) : JobAction;

    /// <summary>Make every rank of the attempt leave at once.</summary>
    public sealed record AbortRanks(string Reason) : JobAction;
}

/// <summary>Whether an input took effect.</summary>
public enum JobVerdict
{
    /// <summary>The state moved.</summary>
    Accepted,

    /// <summary>A repetition of something known; nothing to do.</summary>
    Repeated,

    /// <summary>The input belongs to another attempt or to a job that has ended.</summary>
    Stale,

    /// <summary>The input contradicts what is known, e.g. another spec under the same id.</summary>
    Refused,
}

/// <summary>Result of <see cref="JobTransitions.Next"/>.</summary>
/// <param name="State">The new state; the old one unless accepted.</param>
/// <param name="Actions">What to do after storing it.</param>
/// <param name="Reason">Why, for the log and the console.</param>
public sealed record JobDecision(JobVerdict Verdict, JobState State, ImmutableArray<JobAction> Actions, string Reason);

/// <summary>Answer to a submission.</summary>
/// <param name="Accepted">False when another job runs under the same id.</param>
/// <param name="Message">Why.</param>
[GenerateSerializer, Immutable]
public sealed record SubmitResult([property: Id(0)] bool Accepted, [property: Id(1)] string Message, [property: Id(2)] JobStatus Status);
