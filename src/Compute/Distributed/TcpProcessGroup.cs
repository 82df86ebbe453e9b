using System.Net.Sockets;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// One rank's end of a group whose ranks are processes that reach one another by TCP (<c>--distributed_backend gloo</c>); CPU tensors. An
/// operation is announced to its peers when it is started and runs on a lane, a thread of its own, when they have announced the same. It
/// gives the same bits as <see cref="LoopbackProcessGroup"/>.
/// </summary>
public sealed class TcpProcessGroup : ProcessGroup
{
    private readonly TcpRoster roster;
    private readonly TcpControl control;
    private readonly TcpCollectives collectives;
    private readonly TcpLane collectiveLane;
    private readonly Socket?[] transferSockets;
    private readonly Dictionary<(int Peer, bool IsSend), TransferLane> transferLanes = [];
    private readonly int[] peers;
    private long nextCollective;
    private bool isDisposed;

    /// <param name="sockets">By channel, then by rank in the group; null for this rank itself. The group closes them.</param>
    internal TcpProcessGroup(string name, int rank, IReadOnlyList<int> globalRanks, TimeSpan timeout, IReadOnlyDictionary<TcpChannel, Socket?[]> sockets)
        : base(name, rank, globalRanks)
    {
        peers = [.. Enumerable.Range(0, Size).Where(peer => peer != rank)];
        transferSockets = sockets[TcpChannel.Transfer];
        roster = new TcpRoster(name, rank, globalRanks, timeout) { TellPeers = frame => control?.TellAll(frame) };
        control = new TcpControl(roster, sockets[TcpChannel.Control], () =>
        {
            foreach (var socket in sockets.Values.SelectMany(channel => channel)) socket?.Dispose();
        });
        collectives = new TcpCollectives(roster, new TcpExchange(roster, sockets[TcpChannel.Collective]));
        collectiveLane = new TcpLane(roster, $"{name} collectives");
        control.Start();
    }

    /// <inheritdoc/>
    public override TimeSpan BlockedTime => roster.BlockedTime;

    /// <inheritdoc/>
    public override void Abort(string reason) => roster.SetFault($"Group {Name} was aborted: {reason}", null);

    /// <summary>
    /// Leaves the group: peers that wait for this rank afterwards get a <see cref="RankFaultException"/>, and so do those whose operations
    /// with this rank are not finished.
    /// </summary>
    public override void Dispose()
    {
        if (isDisposed) return;
        isDisposed = true;
        TcpLane[] lanes = [collectiveLane, .. transferLanes.Values.Select(lane => lane.Lane)];
        var isIdle = Array.TrueForAll(lanes, lane => lane.IsIdle);
        var farewell = new TcpFrame(TcpFrameKind.Abort, GlobalRanks[Rank], $"Group {Name}: rank {roster.Describe(Rank)} left the group.", []);
        if (roster.Keep(farewell)) control.TellAll(isIdle ? new TcpFrame(TcpFrameKind.Leave, 0, "", []) : farewell);
        foreach (var lane in lanes) lane.Dispose();
        control.Close();
    }

    protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op)
    {
        var held = Hold(tensor);
        return Enter(LoopbackProcessGroup.Signature("all_reduce", tensor, $"{op}"), held, null, [], (_, title) => collectives.AllReduce(held, op, title));
    }

    protected override CollectiveWork AllGatherCore(Tensor output, Tensor input)
    {
        var (heldOutput, heldInput) = (Hold(output), Hold(input));
        return Enter(LoopbackProcessGroup.Signature("all_gather", input, ""), heldOutput, heldInput, [],
            (_, title) => collectives.AllGather(heldOutput, heldInput, title));
    }

    protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op)
    {
        var (heldOutput, heldInput) = (Hold(output), Hold(input));
        return Enter(LoopbackProcessGroup.Signature("reduce_scatter", input, $"{op}"), heldOutput, heldInput, [],
            (_, title) => collectives.ReduceScatter(heldOutput, heldInput, op, title));
    }

    protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits)
    {
        if (outputSplits.Concat(inputSplits).Any(split => split < 0)) throw new InvalidOperationException($"AllToAll in group {Name}, rank {Rank}: a split is negative.");
        var (heldOutput, heldInput) = (Hold(output), Hold(input));
        var (expected, sent) = ((long[])[.. outputSplits], (long[])[.. inputSplits]);
        var signature = $"all_to_all({input.dtype}[*{string.Concat(input.shape.Skip(1).Select(extent => $", {extent}"))}])";
        return Enter(signature, heldOutput, heldInput, sent, (notices, title) =>
        {
            CheckSplits(notices, expected, title);
            collectives.AllToAll(heldOutput, heldInput, expected, sent, title);
        });
    }

    protected override CollectiveWork BroadcastCore(Tensor tensor, int root)
    {
        var held = Hold(tensor);
        return Enter(LoopbackProcessGroup.Signature("broadcast", tensor, $"root {root}"), held, null, [], (_, title) => collectives.Broadcast(held, root, title));
    }

    protected override unsafe CollectiveWork SendCore(Tensor tensor, int peer)
    {
        var held = Hold(tensor);
        var (signature, title) = ($"{tensor.dtype} x {tensor.numel()}", $"transfer {Rank} -> {peer}");
        return Post(held, peer, isSend: true, signature, (exchange, number) =>
        {
            exchange.Send(peer, TcpCollectives.MemoryOf(held), held.numel() * held.element_size());
            exchange.Run(title);
            roster.Await(TcpFrameKind.Receive, number, [peer], title, signature);
        });
    }

    protected override unsafe CollectiveWork ReceiveCore(Tensor tensor, int peer)
    {
        var held = Hold(tensor);
        var (signature, title) = ($"{tensor.dtype} x {tensor.numel()}", $"transfer {peer} -> {Rank}");
        return Post(held, peer, isSend: false, signature, (exchange, number) =>
        {
            roster.Await(TcpFrameKind.Send, number, [peer], title, signature);
            exchange.Receive(peer, TcpCollectives.MemoryOf(held), held.numel() * held.element_size());
            exchange.Run(title);
        });
    }

    protected override void BarrierCore() => Enter("barrier", null, null, [], (_, _) => { }).Wait();

    private static Tensor Hold(Tensor tensor)
    {
        if (tensor.device_type != TorchSharp.DeviceType.CPU) throw new InvalidOperationException($"The TCP backend moves CPU tensors only; this one is on {tensor.device}.");
        return LoopbackHub.Hold(tensor);
    }

    private TcpOperation Enter(string signature, Tensor? output, Tensor? input, long[] splits, Action<TcpFrame[], string> body)
    {
        var number = nextCollective++;
        var title = $"collective {number}";
        var operation = new TcpOperation(roster, output, input, () => body(roster.Await(TcpFrameKind.Enter, number, peers, title, signature), title));
        ThrowIfFaulted(operation);
        control.TellAll(new TcpFrame(TcpFrameKind.Enter, number, signature, splits));
        collectiveLane.Post(operation);
        return operation;
    }

    private TcpOperation Post(Tensor held, int peer, bool isSend, string signature, Action<TcpExchange, long> body)
    {
        if (!transferLanes.TryGetValue((peer, isSend), out var transfers))
        {
            var lane = new TcpLane(roster, $"{Name} {(isSend ? "to" : "from")} {peer}");
            transferLanes[(peer, isSend)] = transfers = new TransferLane(lane, new TcpExchange(roster, transferSockets));
        }
        var number = transfers.NextNumber++;
        var operation = new TcpOperation(roster, held, null, () => body(transfers.Exchange, number));
        ThrowIfFaulted(operation);
        control.Tell(peer, new TcpFrame(isSend ? TcpFrameKind.Send : TcpFrameKind.Receive, number, signature, []));
        transfers.Lane.Post(operation);
        return operation;
    }

    private void ThrowIfFaulted(TcpOperation operation)
    {
        if (!roster.IsFaulted) return;
        operation.Release();
        throw roster.MakeFault();
    }

    private void CheckSplits(TcpFrame[] notices, long[] expected, string title)
    {
        for (var i = 0; i < peers.Length; i++)
        {
            var sent = notices[i].Splits.Length == Size ? notices[i].Splits[Rank] : -1;
            if (sent == expected[peers[i]]) continue;
            roster.SetFault(
                $"Group {Name}, {title}: all_to_all: rank {peers[i]} sends {sent} rows to rank {Rank}, which expects {expected[peers[i]]}.", null);
            roster.ThrowIfFaulted();
        }
    }

    private sealed class TransferLane(TcpLane lane, TcpExchange exchange)
    {
        public TcpLane Lane => lane;

        public TcpExchange Exchange => exchange;

        public long NextNumber { get; set; }
    }
}
