using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>What a rank starts in a group.</summary>
/// <param name="Group">Name of the group.</param>
/// <param name="GlobalRank">Who starts it.</param>
/// <param name="Operation">As <see cref="CommunicationVolume"/> names it.</param>
public sealed record StartedOperation(string Group, int GlobalRank, string Operation);

/// <summary>A backend that tells a test of every operation before it starts, on the thread of the rank that starts it.</summary>
public sealed class ObservedWorld(IProcessGroupFactory inner, Action<StartedOperation> onStart) : IProcessGroupFactory
{
    /// <inheritdoc/>
    public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members) => new Observed(inner.Create(name, globalRank, members), onStart);

    /// <inheritdoc/>
    public void Abort(string reason) => inner.Abort(reason);

    private sealed class Observed(ProcessGroup inner, Action<StartedOperation> onStart) : ProcessGroup(inner.Name, inner.Rank, inner.GlobalRanks)
    {
        public override void Abort(string reason) => inner.Abort(reason);

        public override void Dispose() => inner.Dispose();

        protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op) => Tell("all_reduce").AllReduce(tensor, op);

        protected override CollectiveWork AllGatherCore(Tensor output, Tensor input) => Tell("all_gather").AllGather(output, input);

        protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op) => Tell("reduce_scatter").ReduceScatter(output, input, op);

        protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits) =>
            Tell("all_to_all").AllToAll(output, input, outputSplits, inputSplits);

        protected override CollectiveWork BroadcastCore(Tensor tensor, int root) => Tell("broadcast").Broadcast(tensor, root);

        protected override CollectiveWork SendCore(Tensor tensor, int peer) => Tell("send").Send(tensor, peer);

        protected override CollectiveWork ReceiveCore(Tensor tensor, int peer) => Tell("receive").Receive(tensor, peer);

        protected override void BarrierCore() => Tell("barrier").Barrier();

        private ProcessGroup Tell(string operation)
        {
            onStart(new StartedOperation(Name, GlobalRanks[Rank], operation));
            return inner;
        }
    }
}
