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

    /// <summary>The control plane saw that the attempt cannot go on: a start was not delivered, or two ranks disagree.</summary>
    public sealed record AttemptFailed(int Attempt, string Reason) : JobInput;

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

    /// <summary>Start every rank of the state's plan under the state's attempt.</summary>
    public sealed record StartRanks(string? LoadFolder) : JobAction;

    /// <summary>Ask every rank of the attempt to stop after its step.</summary>
    public sealed record StopRanks(bool SaveCheckpoint, string Reason) : JobAction;

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
