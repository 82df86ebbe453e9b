using Megatron.Compute.Checkpointing;
using Megatron.Compute.PipelineParallel;

namespace Megatron.Compute.Training;

/// <summary>
/// Identifies one attempt of a job. Every command and report carries it; a message of another attempt is stale and ignored (DESIGN D9).
/// </summary>
/// <param name="JobId">The job.</param>
/// <param name="Attempt">1 for the first start, one more after each recovery: the fence.</param>
public readonly record struct AttemptId(string JobId, int Attempt);

/// <summary>What the control plane tells a rank. Small, idempotent records; no tensor and no grain type (DESIGN D1).</summary>
public abstract record RankCommand(AttemptId Attempt);

/// <summary>
/// Start training: build the model, load the newest state, run until done or told otherwise.
/// </summary>
/// <param name="ConfigJson">Canonical <c>TrainingConfig</c> JSON.</param>
/// <param name="Rank">Global rank.</param>
/// <param name="WorldSize">Number of ranks.</param>
/// <param name="LocalRank">Index of the rank on its node: chooses the device.</param>
/// <param name="RendezvousEndpoint">Where ranks of this attempt find one another: <c>local:NAME</c> in one process, <c>cluster:KEY</c> in a cluster, <c>tcp://host:port</c> otherwise.</param>
/// <param name="LoadFolder">Checkpoint folder (<c>iter_…</c>) to start from, or null for <c>--load</c>/<c>--model</c> of the configuration.</param>
public sealed record StartRank(
    AttemptId Attempt, string ConfigJson, int Rank, int WorldSize, int LocalRank, string RendezvousEndpoint, string? LoadFolder) : RankCommand(Attempt)
{
    /// <summary>The layers and the schedule of the rank's pipeline stage; null only where no model is built.</summary>
    public StageWork? Work { get; init; }

    /// <summary>By rank: the rank on another node that gets its snapshots, itself where there is no other node; empty when none are taken.</summary>
    public IReadOnlyList<int> SnapshotPartners { get; init; } = [];

    /// <summary>Threads for operations on a CPU: the rank's share of its machine's cores; null: the silo divides them among the ranks it can host.</summary>
    public int? NumThreads { get; init; }
}

/// <summary>Finish the step in hand, save a checkpoint when asked to, and stop: a signal or a cancel.</summary>
public sealed record StopRank(AttemptId Attempt, bool SaveCheckpoint, string Reason) : RankCommand(Attempt);

/// <summary>Leave at once: abort collectives, free the device, save nothing.</summary>
public sealed record AbortRank(AttemptId Attempt, string Reason) : RankCommand(Attempt);

/// <summary>
/// Sent to rank 0 only, after the control plane holds the receipts of all ranks: write the manifest, rename the folder, report.
/// </summary>
public sealed record CommitCheckpoint(AttemptId Attempt, string SaveId, long Iteration, IReadOnlyList<CheckpointReceipt> Receipts) : RankCommand(Attempt);

/// <summary>
/// What a rank tells the control plane: at most one <see cref="StepReport"/> per rank and step. Every <see cref="StartRank"/> that took effect is
/// answered by exactly one last report, <see cref="RankFinished"/> or <see cref="RankFaulted"/>, also after an abort.
/// </summary>
public abstract record RankReport(AttemptId Attempt, int Rank);

/// <summary>The rank has built its model and is about to run its first step.</summary>
public sealed record RankStarted(AttemptId Attempt, int Rank, long FirstIteration, long NumParameters, ulong DataPlanHash) : RankReport(Attempt, Rank);

/// <summary>One optimizer step. Metrics are those of the step named, read without stalling the device.</summary>
/// <param name="Iteration">1-based optimizer step.</param>
/// <param name="LossSum">Cross-entropy summed over this rank's target tokens; of the ranks that hold the same loss one reports it, the others 0.</param>
/// <param name="TokenCount">Weight of those tokens, likewise.</param>
/// <param name="LossBits">Bits of the fp32 loss as this rank logged it, for exact comparison.</param>
/// <param name="BatchHash">Hash of the global batch.</param>
public sealed record StepReport(
    AttemptId Attempt, int Rank, long Iteration, double LossSum, double TokenCount, int LossBits, double GradNorm, double LearningRate,
    double LossScale, bool Skipped, ulong BatchHash, TimeSpan StepTime) : RankReport(Attempt, Rank)
{
    /// <summary>
    /// Model floating-point operations of the samples behind <see cref="TokenCount"/> (megatron-swift formula, recompute not counted), through
    /// the whole model; the sum over ranks is the step's work.
    /// </summary>
    public double FloatingPointOperations { get; init; }

    /// <summary>Balance loss of the routers without its coefficient: mean over this rank's micro-batches and layers with experts; null when there is none.</summary>
    public double? LoadBalancingLoss { get; init; }

    /// <summary>z-loss of the routers, likewise.</summary>
    public double? ZLoss { get; init; }

    /// <summary>Global L2 norm of the weights after the step; null unless <c>--log_params_norm</c> asks for it.</summary>
    public double? ParamsNorm { get; init; }

    /// <summary>The part of <c>StepTime</c> in which the rank did not wait for another; null when nobody counted.</summary>
    public TimeSpan? ComputeTime { get; init; }

    /// <summary>The part in which it waited for a neighbour of its pipeline, likewise.</summary>
    public TimeSpan? PipelineWait { get; init; }

    /// <summary>
    /// Tokens that this rank's routers gave to each expert of the model, summed over its layers; null without experts, and between two log intervals.
    /// </summary>
    public IReadOnlyList<long>? TokensPerExpert { get; init; }
}

/// <summary>
/// What the run is about to do, sent by rank 0 after <see cref="RankStarted"/> and before its first step: the console and the log need it.
/// </summary>
/// <param name="TrainIterations">Total optimizer steps of the run, resumed ones included.</param>
/// <param name="LogInterval">Steps between two console lines.</param>
/// <param name="GlobalBatchSize">Samples of one optimizer step over all ranks.</param>
public sealed record TrainingPlanned(AttemptId Attempt, int Rank, long TrainIterations, int LogInterval, int GlobalBatchSize) : RankReport(Attempt, Rank);

/// <summary>One pass of evaluation; every rank of the last stage sends one, others send none.</summary>
/// <param name="Iteration">Optimizer steps done when the evaluation ran.</param>
/// <param name="LossSum">Cross-entropy summed over this rank's target tokens of the evaluation batches; counted once, as in <see cref="StepReport"/>.</param>
/// <param name="TokenCount">Weight of those tokens.</param>
/// <param name="Final">True for the evaluation after the last step.</param>
public sealed record EvaluationReport(
    AttemptId Attempt, int Rank, long Iteration, double LossSum, double TokenCount, bool Final) : RankReport(Attempt, Rank);

/// <summary>A line for the user: console text of rank-side events, already formatted.</summary>
public sealed record RankNotice(AttemptId Attempt, int Rank, RankNoticeLevel Level, string Text) : RankReport(Attempt, Rank);

/// <summary>The ranks are about to do something that takes longer than a step; sent by rank 0. It lasts until it says that steps go on, or to the end.</summary>
/// <param name="Activity">What, as a phrase: <c>the checkpoint</c>, <c>the evaluation</c>; null: steps go on.</param>
public sealed record RankBusy(AttemptId Attempt, int Rank, string? Activity) : RankReport(Attempt, Rank);

/// <summary>How loud a notice is.</summary>
public enum RankNoticeLevel
{
    /// <summary>Shown on the console.</summary>
    Information,

    /// <summary>Shown on the console in the warning colour.</summary>
    Warning,
}

/// <summary>One rank's part of a checkpoint is on disk and synced.</summary>
/// <param name="SaveId">Names the folder <c>.tmp-attempt-saveId</c>.</param>
/// <param name="Files">Every file this rank wrote, with length and XxHash128.</param>
/// <param name="ManifestPart">This rank's part of the manifest as JSON (tensors and slices).</param>
public sealed record CheckpointReceipt(
    AttemptId Attempt, int Rank, string SaveId, long Iteration, IReadOnlyList<CheckpointFile> Files, string ManifestPart) : RankReport(Attempt, Rank);

/// <summary>The checkpoint folder has its final name; it counts from now on. Rank 0 sends it, always before its <see cref="RankFinished"/>.</summary>
public sealed record CheckpointCommitted(AttemptId Attempt, int Rank, string SaveId, long Iteration, string Folder) : RankReport(Attempt, Rank);

/// <summary>The rank ended as asked or because the work is done.</summary>
/// <param name="LastIteration">Last optimizer step done.</param>
/// <param name="Completed">True when the training reached its end, false after a stop.</param>
public sealed record RankFinished(AttemptId Attempt, int Rank, long LastIteration, bool Completed) : RankReport(Attempt, Rank);

/// <summary>The rank cannot go on. A user's mistake has <paramref name="IsUserError"/> set and is not retried.</summary>
/// <param name="Message">One sentence per problem: what, which value, what to do.</param>
/// <param name="Detail">Exception text for the log file; never printed on the console.</param>
public sealed record RankFaulted(AttemptId Attempt, int Rank, string Message, bool IsUserError, string Detail) : RankReport(Attempt, Rank);
