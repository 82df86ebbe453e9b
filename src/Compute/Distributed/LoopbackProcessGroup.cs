using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// One rank's end of a group whose ranks are threads of this process. The oracle for the other backends: values are combined in rank
/// order, whoever comes first. The last rank to enter a collective computes it for all.
/// </summary>
public sealed class LoopbackProcessGroup : ProcessGroup
{
    private readonly LoopbackHub hub;

    internal LoopbackProcessGroup(LoopbackHub hub, int rank) : base(hub.Name, rank, hub.GlobalRanks) => this.hub = hub;

    /// <inheritdoc/>
    public override TimeSpan BlockedTime => hub.BlockedTimeOf(Rank);

    /// <inheritdoc/>
    public override void Abort(string reason) => hub.Abort(reason);

    /// <summary>Leaves the group: peers that wait for this rank afterwards get a <see cref="RankFaultException"/>.</summary>
    public override void Dispose() => hub.Leave(Rank);

    protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op) =>
        Enter(Signature("all_reduce", tensor, $"{op}"), tensor, tensor, call => call.Combine = LoopbackMath.AllReduce(op));

    protected override CollectiveWork AllGatherCore(Tensor output, Tensor input) =>
        Enter(Signature("all_gather", input, ""), output, input, call => call.Combine = LoopbackMath.AllGather);

    protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op) =>
        Enter(Signature("reduce_scatter", input, $"{op}"), output, input, call => call.Combine = LoopbackMath.ReduceScatter(op));

    protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits) =>
        Enter($"all_to_all({input.dtype}[*{string.Concat(input.shape.Skip(1).Select(extent => $", {extent}"))}])", output, input, call =>
        {
            call.Combine = LoopbackMath.AllToAll;
            (call.OutputSplits, call.InputSplits) = ([.. outputSplits], [.. inputSplits]);
        });

    protected override CollectiveWork BroadcastCore(Tensor tensor, int root) =>
        Enter(Signature("broadcast", tensor, $"root {root}"), tensor, tensor, call => call.Combine = LoopbackMath.Broadcast(root));

    protected override CollectiveWork SendCore(Tensor tensor, int peer) => hub.Post(Rank, peer, tensor, isSend: true);

    protected override CollectiveWork ReceiveCore(Tensor tensor, int peer) => hub.Post(peer, Rank, tensor, isSend: false);

    protected override void BarrierCore() => hub.Enter(Rank, new LoopbackCall { Signature = "barrier" }).Wait();

    private CollectiveWork Enter(string signature, Tensor output, Tensor input, Action<LoopbackCall> configure)
    {
        var call = new LoopbackCall { Signature = signature, Output = LoopbackHub.Hold(output), Input = LoopbackHub.Hold(input) };
        configure(call);
        return hub.Enter(Rank, call);
    }

    internal static string Signature(string operation, Tensor tensor, string detail) =>
        $"{operation}({tensor.dtype}[{string.Join(", ", tensor.shape)}]{(detail.Length > 0 ? ", " + detail : "")})";
}
