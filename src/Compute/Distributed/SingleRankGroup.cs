using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>A group of one rank: every collective is a copy or nothing, handled by the base class.</summary>
public sealed class SingleRankGroup : ProcessGroup
{
    public SingleRankGroup(string name, int globalRank = 0) : base(name, 0, [globalRank]) { }

    /// <inheritdoc/>
    public override TimeSpan BlockedTime => TimeSpan.Zero;

    /// <inheritdoc/>
    public override void Abort(string reason) { }

    /// <inheritdoc/>
    public override void Dispose() { }

    protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op) => throw Unreachable();
    protected override CollectiveWork AllGatherCore(Tensor output, Tensor input) => throw Unreachable();
    protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op) => throw Unreachable();
    protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits) => throw Unreachable();
    protected override CollectiveWork BroadcastCore(Tensor tensor, int root) => throw Unreachable();
    protected override CollectiveWork SendCore(Tensor tensor, int peer) => throw Unreachable();
    protected override CollectiveWork ReceiveCore(Tensor tensor, int peer) => throw Unreachable();
    protected override void BarrierCore() => throw Unreachable();

    private InvalidOperationException Unreachable() => new($"Group {Name} has one rank; the base class answers every call.");
}
