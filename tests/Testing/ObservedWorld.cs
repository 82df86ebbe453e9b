using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>What a rank starts in a group.</summary>
/// <param name="Group">Name of the group.</param>
/// <param name="GlobalRank">Who starts it.</param>
/// <param name="Operation">As <see cref="CommunicationVolume"/> names it.</param>
public sealed record StartedOperation(string Group, int GlobalRank, string Operation)
{
    /// <summary>As <see cref="ProcessGroup.IsWarmingUp"/> was then.</summary>
    public bool IsWarmingUp { get; init; }
}

/// <summary>A backend that tells a test of every operation before and after it starts, on the thread of the rank that starts it.</summary>
/// <param name="onStart">Before.</param>
/// <param name="onStarted">After, but for barriers.</param>
public sealed class ObservedWorld(
    IProcessGroupFactory inner, Action<StartedOperation>? onStart = null, Action<StartedOperation, CollectiveWork>? onStarted = null) : IProcessGroupFactory
{
    /// <summary>
    /// A collective ends before the call that starts it returns, so that each holds up everything behind it, of whatever group: the ranks come through
    /// only when there is one order of all collectives that each rank keeps.
    /// </summary>
    public static ObservedWorld InLockstep(IProcessGroupFactory inner) => new(inner, onStarted: (started, work) =>
    {
        if (started.Operation is not ("send" or "receive")) work.Wait();
    });

    /// <inheritdoc/>
    public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members) => new Observed(inner.Create(name, globalRank, members), onStart, onStarted);

    /// <inheritdoc/>
    public void Abort(string reason) => inner.Abort(reason);

    private sealed class Observed(ProcessGroup inner, Action<StartedOperation>? onStart, Action<StartedOperation, CollectiveWork>? onStarted)
        : ProcessGroup(inner.Name, inner.Rank, inner.GlobalRanks)
    {
        public override TimeSpan BlockedTime => inner.BlockedTime;

        public override void Abort(string reason) => inner.Abort(reason);

        public override void Dispose() => inner.Dispose();

        protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op) => Start("all_reduce", () => inner.AllReduce(tensor, op));

        protected override CollectiveWork AllGatherCore(Tensor output, Tensor input) => Start("all_gather", () => inner.AllGather(output, input));

        protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op) => Start("reduce_scatter", () => inner.ReduceScatter(output, input, op));

        protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits) =>
            Start("all_to_all", () => inner.AllToAll(output, input, outputSplits, inputSplits));

        protected override CollectiveWork BroadcastCore(Tensor tensor, int root) => Start("broadcast", () => inner.Broadcast(tensor, root));

        protected override CollectiveWork SendCore(Tensor tensor, int peer) => Start("send", () => inner.Send(tensor, peer));

        protected override CollectiveWork ReceiveCore(Tensor tensor, int peer) => Start("receive", () => inner.Receive(tensor, peer));

        protected override void BarrierCore()
        {
            onStart?.Invoke(new StartedOperation(Name, GlobalRanks[Rank], "barrier") { IsWarmingUp = IsWarmingUp });
            inner.Barrier();
        }

        private CollectiveWork Start(string name, Func<CollectiveWork> start)
        {
            var operation = new StartedOperation(Name, GlobalRanks[Rank], name) { IsWarmingUp = IsWarmingUp };
            onStart?.Invoke(operation);
            var work = start();
            onStarted?.Invoke(operation, work);
            return work;
        }
    }
}
