using System.Diagnostics;
using System.Globalization;
using System.Text;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// Collectives between GPUs by NCCL. Each runs on the group's stream, or on the one of all groups of the rank, behind what the rank's current stream holds;
/// Wait orders the current stream behind it and does not stop the host. Sends and receives have a communicator for each peer and direction
/// (<see cref="NcclChannel"/>).
/// </summary>
internal sealed unsafe class NcclProcessGroup : ProcessGroup
{
    /// <summary>After this time an operation's members begin to look for one another.</summary>
    private static readonly TimeSpan LongestLate = TimeSpan.FromSeconds(1);

    /// <summary>How long a rank that closes the group waits for its own operations, and then for the others to say that theirs are done.</summary>
    private static readonly TimeSpan LongestFarewell = TimeSpan.FromSeconds(5);

    private readonly NcclContext context;
    private readonly string key;
    private readonly NcclCommunicator communicator;
    private readonly StreamWaits waits;
    private readonly Lock gate = new();
    private readonly Dictionary<(int Peer, bool IsSender), NcclChannel> channels = [];
    private readonly TimeSpan lateAfter;
    private long lastLook;
    private volatile string? abortReason;

    /// <param name="key">Name of the group in the store, unique in the attempt.</param>
    public NcclProcessGroup(NcclContext context, string key, string name, int rank, IReadOnlyList<int> globalRanks) : base(name, rank, globalRanks)
    {
        (this.context, this.key, waits) = (context, key, new StreamWaits(context.Device));
        lateAfter = context.Timeout / 4 < LongestLate ? context.Timeout / 4 : LongestLate;
        communicator = new NcclCommunicator(context, key, $"NCCL group {name} of ranks {string.Join(", ", globalRanks)}, rank {globalRanks[rank]}", rank, globalRanks.Count, waits);
    }

    /// <summary>The GPUs of this process must not meet a waiting kernel in a call of the driver: see <see cref="ProcessGroup.IsWarmingUp"/>.</summary>
    private bool WaitsOnHost => IsWarmingUp && context.SharedStream is not null;

    /// <inheritdoc/>
    public override TimeSpan BlockedTime => waits.Total;

    /// <summary>What is wrong with the group; null when nothing is. Called by the watchdog.</summary>
    public RankFaultException? FindFault()
    {
        if (communicator.FindFault() is { } fault) return new RankFaultException(fault);
        NcclChannel[] open;
        lock (gate) open = [.. channels.Values];
        foreach (var channel in open)
            if (channel.FindFault() is { } broken) return new RankFaultException(broken);
        return communicator.OldestPending is { } oldest && oldest.Age > lateAfter && Stopwatch.GetElapsedTime(lastLook) > lateAfter ? LookForTheMissing(oldest) : null;
    }

    /// <summary>
    /// An operation is late. Each member that is in it says so in the store; who left the group, or has not come to it when time is up, is to blame.
    /// The watchdogs talk, not the ranks, so a rank whose thread hangs is found too.
    /// </summary>
    private RankFaultException? LookForTheMissing((long Number, string Operation, TimeSpan Age) oldest)
    {
        lastLook = Stopwatch.GetTimestamp();
        var store = context.Store;
        store.Set(MemberKey("late", Rank), Encoding.ASCII.GetBytes(oldest.Number.ToString(CultureInfo.InvariantCulture)));
        var known = store.Keys($"{key}/").ToHashSet(StringComparer.Ordinal);
        for (var member = 0; member < Size; member++)
            if (known.Contains(MemberKey("left", member)))
                return new RankFaultException($"rank {GlobalRanks[member]} has left while {oldest.Operation} #{oldest.Number} was waiting for it.", GlobalRanks[member]);
        if (oldest.Age <= context.Timeout) return null;
        List<int> missing = [.. Enumerable.Range(0, Size).Where(member => !IsIn(member)).Select(member => GlobalRanks[member])];
        var who = missing.Count == 0 ? "all ranks are in it, so the network between them is slow or broken" : $"rank {string.Join(", ", missing)} did not enter it";
        return new RankFaultException(
            FormattableString.Invariant($"{oldest.Operation} #{oldest.Number} has not finished within {oldest.Age.TotalSeconds:F1} s; {who}."), missing.Count == 0 ? null : missing[0]);

        bool IsIn(int member) => known.Contains(MemberKey("late", member))
            && long.Parse(Encoding.ASCII.GetString(store.Get(MemberKey("late", member), TimeSpan.FromSeconds(1), context.Ending)), CultureInfo.InvariantCulture) >= oldest.Number;
    }

    private bool HasEnded => abortReason is not null || context.Ending.IsCancellationRequested;

    private string MemberKey(string kind, int member) => FormattableString.Invariant($"{key}/{kind}/{member}");

    /// <inheritdoc/>
    public override void ThrowIfFaulted() => communicator.ThrowIfFaulted();

    /// <inheritdoc/>
    public override void Abort(string reason) => Abort(reason, culprit: null);

    /// <param name="culprit">Global rank that is to blame, when known.</param>
    public void Abort(string reason, int? culprit)
    {
        NcclChannel[] open;
        lock (gate)
        {
            abortReason ??= reason;
            open = [.. channels.Values];
        }
        communicator.Abort(reason, culprit);
        foreach (var channel in open) channel.Abort(reason);
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
        try
        {
            SayFarewell();
        }
        catch (Exception problem) when (problem is RankFaultException or InvalidOperationException or OperationCanceledException)
        {
            // The store is gone, or a member did not say that it is done: nothing here is worth waiting for.
            Abort(problem.Message);
        }
        NcclChannel[] open;
        lock (gate)
        {
            open = [.. channels.Values];
            channels.Clear();
        }
        foreach (var channel in open) channel.Dispose();
        communicator.Dispose();
        waits.Dispose();
    }

    /// <summary>
    /// A transfer may need the sender's memory after the sender is through with it: members free their communicators when all have said that their
    /// own operations are done.
    /// </summary>
    private void SayFarewell()
    {
        if (HasEnded) return;
        context.Store.Set(MemberKey("left", Rank), "1"u8);
        var started = Stopwatch.GetTimestamp();
        var spinner = new SpinWait();
        while (!communicator.IsQuiet || !channels.Values.All(channel => channel.IsQuiet))
        {
            if (Stopwatch.GetElapsedTime(started) > LongestFarewell) throw new RankFaultException($"NCCL group {Name}: operations of rank {GlobalRanks[Rank]} do not end.");
            spinner.SpinOnce();
        }
        if (HasEnded) return;
        if (context.Store.Add($"{key}/done", 1) == Size) context.Store.Set($"{key}/all-done", "1"u8);
        else context.Store.Get($"{key}/all-done", LongestFarewell, context.Ending);
    }

    protected override NcclWork AllReduceCore(Tensor tensor, ReduceOp op)
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
        return Channel(peer, isSender: true).Start(Hold(tensor), (nccl, comm, stream) => nccl.Send(pointer, count, type, 1, comm, stream), WaitsOnHost);
    }

    protected override CollectiveWork ReceiveCore(Tensor tensor, int peer)
    {
        var (pointer, count, type) = Describe(tensor);
        return Channel(peer, isSender: false).Start(Hold(tensor), (nccl, comm, stream) => nccl.Receive(pointer, count, type, 0, comm, stream), WaitsOnHost);
    }

    /// <summary>The only call here that waits on the host: everybody's work is enqueued and done.</summary>
    protected override void BarrierCore()
    {
        using var scope = NewDisposeScope();
        var token = zeros(1, dtype: int32, device: new Device(TorchSharp.DeviceType.CUDA, context.Device));
        using var work = AllReduceCore(token, ReduceOp.Sum);
        work.WaitOnHost();
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
            var work = communicator.Start(operation, held, launch);
            if (WaitsOnHost) work.WaitOnHost();
            return work;
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
            channels[(peer, isSender)] = channel = new NcclChannel(context, FormattableString.Invariant($"{key}/{from}-{to}"), description, isSender, waits);
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
