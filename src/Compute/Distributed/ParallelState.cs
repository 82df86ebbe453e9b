namespace Megatron.Compute.Distributed;

/// <summary>
/// This rank's process groups, handed to constructors (DESIGN D6). Members of each group follow from the process grid
/// (numerics 3.12): the dense grid (tp, cp, dp, pp) and the expert grid (etp, ep, edp, pp) over the same ranks.
/// </summary>
public sealed class ParallelState : IDisposable
{
    /// <summary>Tensor (and sequence) parallel group.</summary>
    public required ProcessGroup TensorParallel { get; init; }

    /// <summary>Pipeline group: one rank of each stage.</summary>
    public required ProcessGroup PipelineParallel { get; init; }

    /// <summary>Context-parallel group: ranks that share a sample.</summary>
    public required ProcessGroup ContextParallel { get; init; }

    /// <summary>Data-parallel group without context parallelism: ranks that read different samples.</summary>
    public required ProcessGroup DataParallel { get; init; }

    /// <summary>Data × context: ranks that hold the same dense weights and reduce their gradients.</summary>
    public required ProcessGroup DataContextParallel { get; init; }

    /// <summary>Expert-parallel group: ranks that hold different experts of the same layer.</summary>
    public required ProcessGroup ExpertParallel { get; init; }

    /// <summary>Expert-tensor-parallel group (follows TP).</summary>
    public required ProcessGroup ExpertTensorParallel { get; init; }

    /// <summary>Ranks that hold the same experts and reduce their gradients.</summary>
    public required ProcessGroup ExpertDataParallel { get; init; }

    /// <summary>Tensor × pipeline: one model replica; grad norms are summed over it when the optimizer is not sharded.</summary>
    public required ProcessGroup ModelParallel { get; init; }

    /// <summary>First and last stage, for tied embeddings; a group of one elsewhere.</summary>
    public required ProcessGroup Embedding { get; init; }

    /// <summary>All ranks.</summary>
    public required ProcessGroup World { get; init; }

    /// <summary>Norm and dropout activations are split along the tokens over the TP group.</summary>
    public required bool SequenceParallel { get; init; }

    /// <summary>First pipeline stage: owns the embedding and reads tokens.</summary>
    public bool IsFirstStage => PipelineParallel.Rank == 0;

    /// <summary>Last pipeline stage: owns the head and the loss.</summary>
    public bool IsLastStage => PipelineParallel.Rank == PipelineParallel.Size - 1;

    /// <summary>The state of a run with one rank.</summary>
    public static ParallelState SingleRank() => new()
    {
        TensorParallel = new SingleRankGroup("tp"), PipelineParallel = new SingleRankGroup("pp"), ContextParallel = new SingleRankGroup("cp"),
        DataParallel = new SingleRankGroup("dp"), DataContextParallel = new SingleRankGroup("dp-cp"), ExpertParallel = new SingleRankGroup("ep"),
        ExpertTensorParallel = new SingleRankGroup("etp"), ExpertDataParallel = new SingleRankGroup("edp"),
        ModelParallel = new SingleRankGroup("mp"), Embedding = new SingleRankGroup("embedding"), World = new SingleRankGroup("world"),
        SequenceParallel = false,
    };

    /// <summary>Aborts every group: used when the control plane ends the attempt. Any thread may call it.</summary>
    public void Abort(string reason)
    {
        foreach (var group in Groups()) group.Abort(reason);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var group in Groups()) group.Dispose();
    }

    private ProcessGroup[] Groups() =>
    [
        TensorParallel, PipelineParallel, ContextParallel, DataParallel, DataContextParallel, ExpertParallel, ExpertTensorParallel,
        ExpertDataParallel, ModelParallel, Embedding, World,
    ];
}
