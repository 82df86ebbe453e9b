using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// Collectives between GPUs by NCCL. Each runs on the group's stream behind what the rank's current stream holds; Wait orders the current
/// stream behind it and does not stop the host. Sends and receives have a communicator for each peer and direction (<see cref="NcclChannel"/>).
/// </summary>
internal sealed unsafe class NcclProcessGroup : ProcessGroup
{
    private readonly NcclContext context;
    private readonly string key;
    private readonly NcclCommunicator communicator;
    private readonly Lock gate = new();
    private readonly Dictionary<(int Peer, bool IsSender), NcclChannel> channels = [];
    private string? abortReason;

    /// <param name="key">Name of the group in the store, unique in the attempt.</param>
    public NcclProcessGroup(NcclContext context, string key, string name, int rank, IReadOnlyList<int> globalRanks) : base(name, rank, globalRanks)
    {
        (this.context, this.key) = (context, key);
        communicator = new NcclCommunicator(context, key, $"NCCL group {name} of ranks {string.Join(", ", globalRanks)}, rank {globalRanks[rank]}", rank, globalRanks.Count);
    }

    /// <summary>What is wrong with the group; null when nothing is. Called by the watchdog.</summary>
    public string? FindFault()
    {
        if (communicator.FindFault() is { } fault) return fault;
        NcclChannel[] open;
        lock (gate) open = [.. channels.Values];
        foreach (var channel in open)
            if (channel.FindFault() is { } broken) return broken;
        return null;
    }

    /// <inheritdoc/>
    public override void ThrowIfFaulted() => communicator.ThrowIfFaulted();

    /// <inheritdoc/>
    public override void Abort(string reason)
    {
        NcclChannel[] open;
        lock (gate)
        {
            abortReason ??= reason;
            open = [.. channels.Values];
        }
        communicator.Abort(reason);
        foreach (var channel in open) channel.Abort(reason);
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
        foreach (var channel in channels.Values) channel.Dispose();
        channels.Clear();
        communicator.Dispose();
    }

    protected override CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op)
    {
        var (pointer, count, type) = Describe(tensor);
        return Start("all_reduce", [tensor], (nccl, comm, stream) => nccl.AllReduce(pointer, pointer, count, type, Code(op), comm, stream));
    }

    protected override CollectiveWork AllGatherCore(Tensor output, Tensor input)
    {
        var (source, count, type) = Describe(input);
        var target = Dispatcher.DataPointer(output);
        return Start("all_gather", [output, input], (nccl, comm, stream) => nccl.AllGather(source, target, count, type, comm, stream));
    }

    protected override CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op)
    {
        var (target, count, type) = Describe(output);
        var source = Dispatcher.DataPointer(input);
        return Start("reduce_scatter", [output, input], (nccl, comm, stream) => nccl.ReduceScatter(source, target, count, type, Code(op), comm, stream));
    }

    protected override CollectiveWork BroadcastCore(Tensor tensor, int root)
    {
        var (pointer, count, type) = Describe(tensor);
        return Start("broadcast", [tensor], (nccl, comm, stream) => nccl.Broadcast(pointer, pointer, count, type, root, comm, stream));
    }

    protected override CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits)
    {
        var (source, type) = (Dispatcher.DataPointer(input), TypeOf(input));
        var target = Dispatcher.DataPointer(output);
        long rowElements = input.shape.Length > 1 ? input.shape[1..].Aggregate(1L, (a, b) => a * b) : 1, elementSize = input.element_size();
        return Start("all_to_all", [output, input], (nccl, comm, stream) =>
        {
            var first = nccl.GroupStart();
            nint from = source, to = target;
            for (var peer = 0; peer < Size && first == NcclResult.Success; peer++)
            {
                long sent = inputSplits[peer] * rowElements, received = outputSplits[peer] * rowElements;
                if (sent > 0) first = Worse(first, nccl.Send(from, (nuint)sent, type, peer, comm, stream));
                if (received > 0) first = Worse(first, nccl.Receive(to, (nuint)received, type, peer, comm, stream));
                from += (nint)(sent * elementSize);
                to += (nint)(received * elementSize);
            }
            return Worse(first, nccl.GroupEnd());
        });
    }

    protected override CollectiveWork SendCore(Tensor tensor, int peer)
    {
        var (pointer, count, type) = Describe(tensor);
        return Channel(peer, isSender: true).Start(Hold(tensor), (nccl, comm, stream) => nccl.Send(pointer, count, type, 1, comm, stream));
    }

    protected override CollectiveWork ReceiveCore(Tensor tensor, int peer)
    {
        var (pointer, count, type) = Describe(tensor);
        return Channel(peer, isSender: false).Start(Hold(tensor), (nccl, comm, stream) => nccl.Receive(pointer, count, type, 0, comm, stream));
    }

    /// <summary>The only call here that waits on the host: everybody's work is enqueued and done.</summary>
    protected override void BarrierCore()
    {
        using var scope = NewDisposeScope();
        var token = zeros(1, dtype: int32, device: new Device(TorchSharp.DeviceType.CUDA, context.Device));
        using var work = AllReduceCore(token, ReduceOp.Sum);
        var spinner = new SpinWait();
        while (!work.IsCompleted) spinner.SpinOnce();
        work.Wait();
    }

    private NcclWork Start(string operation, Tensor[] tensors, NcclCommunicator.Launch launch)
    {
        foreach (var tensor in tensors)
            if (tensor.device_type != TorchSharp.DeviceType.CUDA)
                throw new InvalidOperationException($"{operation} in group {Name}, rank {Rank}: the tensor is on {tensor.device}; NCCL takes CUDA tensors.");
        Tensor[] held = [.. tensors.Select(Hold)];
        try
        {
            return communicator.Start(operation, held, launch);
        }
        catch
        {
            foreach (var tensor in held) tensor.Dispose();
            throw;
        }
    }

    private NcclChannel Channel(int peer, bool isSender)
    {
        lock (gate)
        {
            if (channels.TryGetValue((peer, isSender), out var channel)) return channel;
            var (from, to) = isSender ? (Rank, peer) : (peer, Rank);
            var description = $"NCCL transfers of group {Name} from rank {GlobalRanks[from]} to rank {GlobalRanks[to]}";
            channels[(peer, isSender)] = channel = new NcclChannel(context, FormattableString.Invariant($"{key}/{from}-{to}"), description, isSender);
            if (abortReason is not null) channel.Abort(abortReason);
            return channel;
        }
    }

    private static Tensor Hold(Tensor tensor) => tensor.alias().DetachFromDisposeScope();

    private static NcclResult Worse(NcclResult first, NcclResult second) => first is NcclResult.Success or NcclResult.InProgress && second != NcclResult.Success ? second : first;

    private static (nint Pointer, nuint Count, int Type) Describe(Tensor tensor) => (Dispatcher.DataPointer(tensor), (nuint)tensor.numel(), TypeOf(tensor));

    private static int TypeOf(Tensor tensor) => tensor.dtype switch
    {
        ScalarType.Int32 => 2,
        ScalarType.Int64 => 4,
        ScalarType.Float16 => 6,
        ScalarType.Float32 => 7,
        ScalarType.Float64 => 8,
        ScalarType.BFloat16 => 9,
        var other => throw new InvalidOperationException($"NCCL groups do not carry {other}."),
    };

    private static int Code(ReduceOp op) => op switch
    {
        ReduceOp.Sum => 0,
        ReduceOp.Max => 2,
        ReduceOp.Average => 4,
        _ => throw new ArgumentOutOfRangeException(nameof(op)),
    };
}
