using System.Collections.Immutable;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;

namespace Megatron.Grains.Stages;

/// <summary>One optimizer step as the ranks of one pipeline stage saw it.</summary>
[GenerateSerializer, Immutable]
public sealed record StageStepReport
{
    [Id(0)] public required int Stage { get; init; }

    [Id(1)] public required long Iteration { get; init; }

    /// <summary>Cross-entropy summed over the data-parallel ranks; 0 for all but the last stage.</summary>
    [Id(2)] public required double LossSum { get; init; }

    /// <summary>Weight of the tokens behind <see cref="LossSum"/>.</summary>
    [Id(3)] public required double TokenCount { get; init; }

    /// <summary>Bits of the fp32 loss that the lowest rank of the stage logged.</summary>
    [Id(4)] public required int LossBits { get; init; }

    [Id(5)] public required double GradNorm { get; init; }

    [Id(6)] public required double LearningRate { get; init; }

    [Id(7)] public required double LossScale { get; init; }

    [Id(8)] public required bool Skipped { get; init; }

    [Id(9)] public required ulong BatchHash { get; init; }

    /// <summary>False when two ranks of the stage trained on different global batches.</summary>
    [Id(10)] public required bool BatchHashesAgree { get; init; }

    /// <summary>The slowest rank's time.</summary>
    [Id(11)] public required TimeSpan StepTime { get; init; }

    [Id(12)] public required int SlowestRank { get; init; }

    /// <summary>Model floating-point operations of the step, summed over the ranks.</summary>
    [Id(13)] public required double FloatingPointOperations { get; init; }

    /// <summary>Balance loss of the routers without its coefficient, mean over ranks, micro-batches and layers with experts; null when there is none.</summary>
    [Id(14)] public double? LoadBalancingLoss { get; init; }

    /// <summary>z-loss of the routers, likewise.</summary>
    [Id(15)] public double? ZLoss { get; init; }

    /// <summary>Global L2 norm of the weights after the step, when it was asked for.</summary>
    [Id(16)] public double? ParamsNorm { get; init; }

    /// <summary>Mean over the ranks of the time in which they did not wait for others; null on devices that are not waited for.</summary>
    [Id(17)] public TimeSpan? ComputeTime { get; init; }

    /// <summary>Share of the step in which the ranks waited for a neighbour of their pipeline, mean over the ranks; likewise.</summary>
    [Id(18)] public double? BubbleFraction { get; init; }

    /// <summary>The rank that is much slower than its peers, as <see cref="StragglerWatch"/> sees it.</summary>
    [Id(19)] public Straggler? Straggler { get; init; }

    /// <summary>Tokens that the stage's routers gave to each expert; null without experts and between log intervals.</summary>
    [Id(20)] public IReadOnlyList<long>? TokensPerExpert { get; init; }

    [Id(21)] public int NumRanks { get; init; }

    /// <summary>Mean loss of the step's target tokens.</summary>
    public double Loss => LossSum / TokenCount;
}

/// <summary>What a client sees of a pipeline stage: its newest step.</summary>
[GenerateSerializer, Immutable]
public sealed record StageStatus(
    [property: Id(0)] int Stage, [property: Id(1)] int NumRanks, [property: Id(2)] long Iteration, [property: Id(3)] TimeSpan StepTime,
    [property: Id(4)] TimeSpan? ComputeTime, [property: Id(5)] double? BubbleFraction, [property: Id(6)] Straggler? Straggler);

/// <summary>One evaluation as the ranks of the last stage saw it.</summary>
[GenerateSerializer, Immutable]
public sealed record StageEvaluation(
    [property: Id(0)] long Iteration, [property: Id(1)] double LossSum, [property: Id(2)] double TokenCount, [property: Id(3)] bool Final)
{
    /// <summary>Mean loss of the evaluation's target tokens.</summary>
    public double Loss => LossSum / TokenCount;
}

/// <summary>What a rank grain sends on: a report with its place in the rank's order, so that a repeated delivery is recognised.</summary>
/// <param name="Sequence">1 for the first report of the rank in this attempt.</param>
[GenerateSerializer, Immutable]
public sealed record SequencedReport([property: Id(0)] long Sequence, [property: Id(1)] RankReport Report);

/// <summary>What a stage grain tells its job, in order; exactly one of the three payloads is set.</summary>
/// <param name="Incarnation">Another one after the stage's grain has moved: its sequence begins anew then.</param>
/// <param name="Sequence">1 for the first message of the stage in this attempt.</param>
[GenerateSerializer, Immutable]
public sealed record StageMessage(
    [property: Id(0)] AttemptId Attempt, [property: Id(1)] int Stage, [property: Id(6)] Guid Incarnation, [property: Id(2)] long Sequence)
{
    /// <summary>All ranks of the stage finished a step.</summary>
    [Id(3)] public StageStepReport? Step { get; init; }

    /// <summary>All ranks of the stage finished an evaluation.</summary>
    [Id(4)] public StageEvaluation? Evaluation { get; init; }

    /// <summary>Any other report of a rank, passed on unchanged.</summary>
    [Id(5)] public RankReport? Report { get; init; }
}

/// <summary>Start order for one stage: its ranks, and its layers and schedule, which the stage hands to each of them.</summary>
[GenerateSerializer, Immutable]
public sealed record StageLaunch(
    [property: Id(0)] AttemptId Attempt, [property: Id(1)] int Stage, [property: Id(2)] ImmutableArray<RankStart> Ranks, [property: Id(3)] StageWork? Work);

/// <summary>A rank's start command and the key of the rank grain that gets it.</summary>
/// <param name="Silo">The silo that the plan counts on; one that has come in its place must not start the rank.</param>
[GenerateSerializer, Immutable]
public sealed record RankStart([property: Id(0)] string RankGrainKey, [property: Id(1)] StartRank Command, [property: Id(2)] string Silo);

/// <summary>The stage's grain was activated anew and waits for its job to tell it the launch; the sender repeats its message.</summary>
[GenerateSerializer]
public sealed class StageUnknownException : OrleansException
{
    public StageUnknownException(string message) : base(message) { }
}
