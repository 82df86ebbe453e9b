namespace Megatron.Compute.Distributed;

/// <summary>
/// This rank's process groups, handed to constructors (DESIGN D6). Members of each group follow from the process grid
/// (numerics 3.12): the dense grid (tp, cp, dp, pp) and the expert grid (etp, ep, edp, pp) over the same ranks.
/// </summary>
public sealed class ParallelState : IDisposable
{
    /// <summary>The grid from which the groups follow.</summary>
    public required ParallelDims Dims { get; init; }

    /// <summary>This rank among all ranks.</summary>
    public int Rank => World.Rank;

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

    /// <summary>Steps after which everything that a step needs has been loaded, planned and allocated.</summary>
    public const int WarmupSteps = 2;

    /// <summary>As <see cref="ProcessGroup.IsWarmingUp"/>, for all groups.</summary>
    public bool IsWarmingUp
    {
        set
        {
            foreach (var group in Groups()) group.IsWarmingUp = value;
        }
    }

    /// <summary>First pipeline stage: owns the embedding and reads tokens.</summary>
    public bool IsFirstStage => PipelineParallel.Rank == 0;

    /// <summary>Last pipeline stage: owns the head and the loss.</summary>
    public bool IsLastStage => PipelineParallel.Rank == PipelineParallel.Size - 1;

    /// <summary>
    /// Opens all groups of <paramref name="rank"/>, in one order on all ranks; groups of one need no backend.
    /// </summary>
    /// <param name="sequenceParallel"><c>--sequence_parallel</c>; has no effect without tensor parallelism.</param>
    public static ParallelState Create(ParallelDims dims, int rank, IProcessGroupFactory factory, bool sequenceParallel)
    {
        ProcessGroup Open(string name, GroupKind kind)
        {
            var members = dims.MembersOf(kind, rank);
            return members.Count == 1 ? new SingleRankGroup(name, rank) : factory.Create(name, rank, members);
        }
        return new ParallelState
        {
            Dims = dims,
            World = Open("world", GroupKind.World),
            TensorParallel = Open("tp", GroupKind.TensorParallel),
            ContextParallel = Open("cp", GroupKind.ContextParallel),
            DataParallel = Open("dp", GroupKind.DataParallel),
            DataContextParallel = Open("dp-cp", GroupKind.DataContextParallel),
            PipelineParallel = Open("pp", GroupKind.PipelineParallel),
            ModelParallel = Open("mp", GroupKind.ModelParallel),
            Embedding = Open("embedding", GroupKind.Embedding),
            ExpertTensorParallel = Open("etp", GroupKind.ExpertTensorParallel),
            ExpertParallel = Open("ep", GroupKind.ExpertParallel),
            ExpertDataParallel = Open("edp", GroupKind.ExpertDataParallel),
            SequenceParallel = sequenceParallel && dims.TensorParallelSize > 1,
        };
    }

    /// <summary>The state of a run with one rank.</summary>
    public static ParallelState SingleRank() => Create(ParallelDims.SingleRank, 0, new NoBackend(), sequenceParallel: false);

    /// <summary>After results were read on the host: see <see cref="ProcessGroup.ThrowIfFaulted"/>.</summary>
    public void ThrowIfFaulted()
    {
        foreach (var group in Groups()) group.ThrowIfFaulted();
    }

    /// <summary>As <see cref="ProcessGroup.BlockedTime"/>, all groups together.</summary>
    public TimeSpan BlockedTime => Groups().Aggregate(TimeSpan.Zero, (total, group) => total + group.BlockedTime);

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

    private sealed class NoBackend : IProcessGroupFactory
    {
        public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members) =>
            throw new InvalidOperationException($"A run with one rank opened group {name} of {members.Count}.");

        public void Abort(string reason)
        {
            // There is no group.
        }
    }
}
