using Megatron.Compute.Optimizers;

namespace Megatron.Compute.Checkpointing;

/// <summary>Where a run stands: everything beside tensors that exact resumption needs. The same on all ranks.</summary>
public sealed record TrainerState
{
    /// <summary>Optimizer steps done, skipped ones included.</summary>
    public required long Iteration { get; init; }

    /// <summary>Samples of all global batches done.</summary>
    public required long ConsumedSamples { get; init; }

    /// <summary>Updates applied: the exponent of Adam's bias corrections.</summary>
    public required long OptimizerSteps { get; init; }

    /// <summary>Steps skipped for a gradient that was not finite, with a loss scale.</summary>
    public required long SkippedIterations { get; init; }

    /// <summary>Steps skipped for a gradient that was not finite, without a loss scale.</summary>
    public required long NanIterations { get; init; }

    /// <summary>fp16 loss scale; null for other dtypes.</summary>
    public required LossScalerState? LossScaler { get; init; }

    /// <summary>Seed of initialisation and dropout; random numbers are functions of it and the position, so there is no further state. Null when
    /// saved with <c>--no_save_rng</c>.</summary>
    public required ulong? Seed { get; init; }

    /// <summary>Next global batch of the data plan.</summary>
    public required DataCursor Data { get; init; }
}

/// <summary>Position in the data plan.</summary>
/// <param name="NextBatch">Index of the next global batch.</param>
/// <param name="PlanHash">Hash of the plan's settings and samples: another hash means that the data changed.</param>
public sealed record DataCursor(long NextBatch, ulong PlanHash)
{
    /// <summary>Position in a stream of data, as its reader wrote it; null for planned data.</summary>
    public string? Stream { get; init; }
}

/// <summary>The process grid that wrote a checkpoint; information only, any other may load it.</summary>
public sealed record CheckpointLayout
{
    public required int TensorParallel { get; init; }
    public required int PipelineParallel { get; init; }
    public required int VirtualPipeline { get; init; }
    public required int ContextParallel { get; init; }
    public required int ExpertParallel { get; init; }
    public required int DataParallel { get; init; }
    public required int LogicalDataShards { get; init; }

    /// <summary>One rank.</summary>
    public static CheckpointLayout SingleRank { get; } = new()
    {
        TensorParallel = 1, PipelineParallel = 1, VirtualPipeline = 1, ContextParallel = 1, ExpertParallel = 1, DataParallel = 1, LogicalDataShards = 1,
    };
}

/// <summary>The run-level facts of a checkpoint, given by the trainer at commit.</summary>
public sealed record RunFacts
{
    public required string JobId { get; init; }

    /// <summary>The fence: which attempt of the job wrote it.</summary>
    public required int Attempt { get; init; }

    /// <summary>The model's shape as name-value texts (<see cref="ConfigFacts.Of"/>): compared on load, all differences listed.</summary>
    public required IReadOnlyDictionary<string, string> ModelConfig { get; init; }

    /// <summary>XxHash128 of the tokenizer's files, null without a tokenizer.</summary>
    public required string? TokenizerHash { get; init; }

    public required CheckpointLayout Layout { get; init; }
    public required int GlobalBatchSize { get; init; }
    public required int MicroBatchSize { get; init; }
    public required TrainerState Trainer { get; init; }

    /// <summary>Optimizer type and hyperparameters as name-value texts; empty when the state was not saved.</summary>
    public required IReadOnlyDictionary<string, string> Optimizer { get; init; }

    /// <summary>Learning-rate schedule as name-value texts; empty when the state was not saved.</summary>
    public required IReadOnlyDictionary<string, string> Schedule { get; init; }
}
