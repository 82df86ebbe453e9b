using Megatron.Compute.Training;
using Megatron.Grains.Stages;

namespace Megatron.Grains.Jobs;

/// <summary>
/// One line in the life of a job, in order. A watcher that saw event n asks for n + 1 and misses nothing that the ring still holds.
/// </summary>
/// <param name="Sequence">1 for the first event of the job.</param>
[GenerateSerializer, Immutable]
public abstract record JobEvent([property: Id(0)] long Sequence, [property: Id(1)] DateTimeOffset Time);

/// <summary>The job entered a phase; <paramref name="Outcome"/> is set when it has ended.</summary>
[GenerateSerializer, Immutable]
public sealed record JobPhaseChanged(
    long Sequence, DateTimeOffset Time, [property: Id(0)] JobPhase Phase, [property: Id(1)] int Attempt, [property: Id(2)] string Reason,
    [property: Id(3)] JobOutcome? Outcome) : JobEvent(Sequence, Time);

/// <summary>The ranks are built and know how long the run is.</summary>
[GenerateSerializer, Immutable]
public sealed record JobPlanned(long Sequence, DateTimeOffset Time, [property: Id(0)] TrainingPlanned Plan, [property: Id(1)] int WorldSize)
    : JobEvent(Sequence, Time);

/// <summary>The last stage finished an optimizer step.</summary>
[GenerateSerializer, Immutable]
public sealed record JobStepDone(long Sequence, DateTimeOffset Time, [property: Id(0)] StageStepReport Step) : JobEvent(Sequence, Time);

/// <summary>An evaluation ended.</summary>
[GenerateSerializer, Immutable]
public sealed record JobEvaluated(long Sequence, DateTimeOffset Time, [property: Id(0)] StageEvaluation Evaluation) : JobEvent(Sequence, Time);

/// <summary>A checkpoint has its final name.</summary>
[GenerateSerializer, Immutable]
public sealed record JobCheckpointSaved(long Sequence, DateTimeOffset Time, [property: Id(0)] CommittedCheckpoint Checkpoint)
    : JobEvent(Sequence, Time);

/// <summary>A line for the user from a rank.</summary>
[GenerateSerializer, Immutable]
public sealed record JobNotice(
    long Sequence, DateTimeOffset Time, [property: Id(0)] int Rank, [property: Id(1)] RankNoticeLevel Level, [property: Id(2)] string Text)
    : JobEvent(Sequence, Time);

/// <summary>A rank is much slower than its peers, or no longer.</summary>
/// <param name="Factor">Its time without waiting over that of its peers; null when it is as fast as they again.</param>
[GenerateSerializer, Immutable]
public sealed record JobStraggler(
    long Sequence, DateTimeOffset Time, [property: Id(0)] int Rank, [property: Id(1)] int Stage, [property: Id(2)] long Iteration, [property: Id(3)] double? Factor)
    : JobEvent(Sequence, Time);

/// <summary>Events between two that this watcher got have left the ring.</summary>
/// <param name="NumSkipped">How many; 0 when nobody knows, because the job's grain has moved to another silo.</param>
[GenerateSerializer, Immutable]
public sealed record JobEventsSkipped(long Sequence, DateTimeOffset Time, [property: Id(0)] long NumSkipped) : JobEvent(Sequence, Time);
