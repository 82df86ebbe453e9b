using Megatron.Compute.Configuration;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;

namespace Megatron.Grains.Jobs;

/// <summary>What the planner must know of a job's grid: which sizes are fixed by the model's split, and which numbers of replicas divide its batch.</summary>
[GenerateSerializer, Immutable]
public sealed record JobLayout
{
    [Id(0)] public int TensorSize { get; init; } = 1;

    [Id(1)] public int ContextSize { get; init; } = 1;

    [Id(2)] public int PipelineSize { get; init; } = 1;

    /// <summary>Expert-parallel size; spreads over the tensor, context and data ranks of a stage.</summary>
    [Id(3)] public int ExpertSize { get; init; } = 1;

    [Id(4)] public int ExpertTensorSize { get; init; } = 1;

    /// <summary>Micro-batches of a global batch over all replicas; 0 when unknown: any number of replicas will do.</summary>
    [Id(5)] public int NumMicroBatches { get; init; }

    /// <summary>Gradient accumulators over all replicas; 0 when there is no fixed number.</summary>
    [Id(6)] public int LogicalDataShards { get; init; }

    /// <summary>Which layers each stage owns; null for ranks that build no model.</summary>
    [Id(7)] public PipelinePartition? Partition { get; init; }

    [Id(8)] public PipelineScheduleKind Schedule { get; init; }

    /// <summary>Ranks that share a stage's matrices and sequences: they should lie on one node.</summary>
    public int BlockSize => TensorSize * ContextSize;

    /// <summary>Ranks of one complete copy of the model.</summary>
    public int ReplicaSize => BlockSize * PipelineSize;

    /// <summary>The layout that a configuration asks for.</summary>
    public static JobLayout Of(TrainingConfig config, ModelConfig model) => new()
    {
        TensorSize = config.TensorModelParallelSize,
        ContextSize = config.ContextParallelSize,
        PipelineSize = config.PipelineModelParallelSize,
        ExpertSize = config.ExpertModelParallelSize,
        ExpertTensorSize = config.ExpertTensorParallelSize ?? config.TensorModelParallelSize,
        NumMicroBatches = config.GlobalBatchSize / config.MicroBatchSize,
        LogicalDataShards = config.LogicalDataShards ?? 0,
        Partition = RunSettings.Partition(config, model),
        Schedule = RunSettings.Schedule(config),
    };

    /// <summary>What the ranks of a stage have to do; null without a <see cref="Partition"/>.</summary>
    public StageWork? WorkOf(int stage) => Partition is null ? null : new StageWork(Partition.LayoutsOf(stage), Schedule);

    /// <summary>Whether the batch, the shards and the experts divide over this many replicas.</summary>
    public bool Allows(int numReplicas) =>
        (NumMicroBatches == 0 || NumMicroBatches % numReplicas == 0)
        && (LogicalDataShards == 0 || LogicalDataShards % numReplicas == 0)
        && (ExpertSize == 1 || BlockSize * numReplicas % (ExpertSize * ExpertTensorSize) == 0);
}
