using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>How values of the ranks are combined.</summary>
public enum ReduceOp
{
    /// <summary>Sum over ranks, in a fixed order.</summary>
    Sum,

    /// <summary>Element-wise maximum.</summary>
    Max,

    /// <summary>Sum divided by the group's size; floating types only.</summary>
    Average,
}

/// <summary>
/// A set of ranks that communicate, seen from one of them (DESIGN D5, D6). Every collective is entered by all ranks of the group in the
/// same order or by none. Calls come from the rank's thread; only <see cref="Abort"/> may come from another. In a group of one rank
/// every call returns at once, so single-rank code is the same code.
/// </summary>
/// <remarks>
/// <para>Dtypes: bf16, fp16, fp32, fp64, int32, int64. Tensors are contiguous.</para>
/// <para>
/// Asynchrony. Every call starts its operation and returns without waiting for a peer. The operation reads its inputs as the work that was
/// issued before the call leaves them: a device backend enqueues it on a stream of its own behind an event of the rank's current stream.
/// Until <see cref="CollectiveWork.Wait"/> the inputs must not be written and the outputs be neither read nor written; the caller may free
/// its handles, because the group holds the storage until Wait. Each started operation is waited for at least once, in any order.
/// </para>
/// <para>
/// Order. The collectives of one group run one after another in the order in which they were started, so that one may be started on what
/// the one before it makes, without a wait between them. Transfers are ordered for each peer and direction by itself: a send that its peer
/// does not receive yet holds up no receive, no collective and no transfer with another peer (pipeline schedules are proved for that).
/// Different groups are not ordered against each other; ranks that share several groups start their operations in the same order
/// everywhere, because a device may be unable to run two communicators' kernels side by side.
/// </para>
/// <para>
/// Faults. A lost peer, a timeout or an abort throws <see cref="RankFaultException"/> from Wait or, on a device backend whose Wait does not
/// block the host, from a later call of the group or from the next read of a result. Nothing of an operation that failed may be used.
/// </para>
/// </remarks>
public abstract class ProcessGroup : IDisposable
{
    /// <summary>Name for messages: <c>tp</c>, <c>dp-cp</c>, …</summary>
    public string Name { get; }

    /// <summary>This rank's index in the group.</summary>
    public int Rank { get; }

    /// <summary>Number of ranks in the group.</summary>
    public int Size => GlobalRanks.Count;

    /// <summary>Global ranks of the members, ascending; index = rank in the group.</summary>
    public IReadOnlyList<int> GlobalRanks { get; }

    /// <summary>Bytes this rank has sent, by operation; the parity tests compare it with the formula of each layout.</summary>
    public CommunicationVolume Volume { get; } = new();

    /// <summary>
    /// How long this rank has waited for operations of this group so far: its thread or, where Wait returns at once, its current stream, which a later reading
    /// tells of waits that are not over. What a thread waits for while <see cref="IsWarmingUp"/> does not count there. On the rank's thread.
    /// </summary>
    public abstract TimeSpan BlockedTime { get; }

    /// <summary>
    /// The rank may still load kernels, make plans and take memory, which can hang behind a collective that waits for another GPU of the same process
    /// (docs/adr/0012). Where that can be, a collective and a transfer's Wait return only when the device is through with it. Groups begin with true; the
    /// program that steps sets it.
    /// </summary>
    public bool IsWarmingUp { get; set; } = true;

    protected ProcessGroup(string name, int rank, IReadOnlyList<int> globalRanks)
    {
        if (rank < 0 || rank >= globalRanks.Count)
            throw new ArgumentOutOfRangeException(nameof(rank), $"Group {name} has {globalRanks.Count} ranks; {rank} is none of them.");
        (Name, Rank, GlobalRanks) = (name, rank, globalRanks);
    }

    /// <summary>Reduces <paramref name="tensor"/> over the group, in place; every rank gets the same bits.</summary>
    public CollectiveWork AllReduce(Tensor tensor, ReduceOp op)
    {
        if (Size == 1) return CollectiveWork.Completed;
        Require(tensor.is_contiguous(), "AllReduce", "the tensor must be contiguous");
        RequireReducible(tensor, "AllReduce", op);
        Volume.Add("all_reduce", 2L * (Size - 1) * BytesOf(tensor) / Size);
        return AllReduceCore(tensor, op);
    }

    /// <summary>Concatenates the ranks' inputs along dimension 0 in rank order.</summary>
    /// <param name="output">Size × the elements of <paramref name="input"/>, which may be this rank's part of it.</param>
    public CollectiveWork AllGather(Tensor output, Tensor input)
    {
        Require(output.is_contiguous() && input.is_contiguous(), "AllGather", "both tensors must be contiguous");
        Require(output.numel() == input.numel() * Size, "AllGather", $"output has {output.numel()} elements, expected {input.numel() * Size}");
        if (Size == 1) return CopySingle(output, input);
        Volume.Add("all_gather", (Size - 1L) * BytesOf(input));
        return AllGatherCore(output, input);
    }

    /// <summary>Reduces <paramref name="input"/> over the group and leaves this rank's 1/Size of dimension 0 in <paramref name="output"/>,
    /// which may be that part of the input; the rest of the input keeps its values.</summary>
    public CollectiveWork ReduceScatter(Tensor output, Tensor input, ReduceOp op)
    {
        Require(output.is_contiguous() && input.is_contiguous(), "ReduceScatter", "both tensors must be contiguous");
        Require(input.numel() == output.numel() * Size, "ReduceScatter", $"input has {input.numel()} elements, expected {output.numel() * Size}");
        RequireReducible(input, "ReduceScatter", op);
        if (Size == 1) return CopySingle(output, input);
        Volume.Add("reduce_scatter", (Size - 1L) * BytesOf(output));
        return ReduceScatterCore(output, input, op);
    }

    /// <summary>
    /// Sends rows [dimension 0] of <paramref name="input"/> to the ranks of the group and receives theirs, in rank order.
    /// </summary>
    /// <param name="outputSplits">[Size] rows received from each rank; sums to output's rows.</param>
    /// <param name="inputSplits">[Size] rows sent to each rank; sums to input's rows.</param>
    public CollectiveWork AllToAll(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits)
    {
        Require(output.is_contiguous() && input.is_contiguous(), "AllToAll", "both tensors must be contiguous");
        Require(outputSplits.Length == Size && inputSplits.Length == Size, "AllToAll", $"there must be {Size} splits");
        Require(outputSplits.Sum() == output.shape[0], "AllToAll", "outputSplits do not sum to the rows of output");
        Require(inputSplits.Sum() == input.shape[0], "AllToAll", "inputSplits do not sum to the rows of input");
        if (Size == 1) return CopySingle(output, input);
        var rowBytes = input.shape[0] == 0 ? 0 : BytesOf(input) / input.shape[0];
        Volume.Add("all_to_all", (input.shape[0] - inputSplits[Rank]) * rowBytes);
        return AllToAllCore(output, input, outputSplits, inputSplits);
    }

    /// <summary>Copies <paramref name="tensor"/> of rank <paramref name="root"/> (index in the group) to all others.</summary>
    public CollectiveWork Broadcast(Tensor tensor, int root)
    {
        Require(tensor.is_contiguous(), "Broadcast", "the tensor must be contiguous");
        Require(root >= 0 && root < Size, "Broadcast", $"{root} is not a rank of the group");
        if (Size == 1) return CollectiveWork.Completed;
        if (Rank == root) Volume.Add("broadcast", BytesOf(tensor));
        return BroadcastCore(tensor, root);
    }

    /// <summary>
    /// Sends to one peer (index in the group); matched by its <see cref="Receive"/> in order. Waiting for it may block until the peer
    /// receives, so two ranks that send to each other must both start their receive before they wait for their send; in which order they
    /// start the two does not matter.
    /// </summary>
    public CollectiveWork Send(Tensor tensor, int peer)
    {
        Require(tensor.is_contiguous(), "Send", "the tensor must be contiguous");
        Require(peer != Rank && peer >= 0 && peer < Size, "Send", $"{peer} is not a peer");
        Volume.Add("send", BytesOf(tensor));
        return SendCore(tensor, peer);
    }

    /// <summary>Receives from one peer (index in the group) into <paramref name="tensor"/>, whose size and dtype match what is sent.</summary>
    public CollectiveWork Receive(Tensor tensor, int peer)
    {
        Require(tensor.is_contiguous(), "Receive", "the tensor must be contiguous");
        Require(peer != Rank && peer >= 0 && peer < Size, "Receive", $"{peer} is not a peer");
        return ReceiveCore(tensor, peer);
    }

    /// <summary>Returns when all ranks of the group have called it.</summary>
    public void Barrier()
    {
        if (Size > 1) BarrierCore();
    }

    /// <summary>
    /// For a rank that has just read a result on the host: throws when the group had failed by then, because a device backend's operations end
    /// with garbage when they are aborted. Backends whose Wait blocks have thrown there.
    /// </summary>
    /// <exception cref="RankFaultException">The group has been aborted or a peer was lost.</exception>
    public virtual void ThrowIfFaulted() { }

    /// <summary>
    /// Releases every caller of this group within a second, here and, as far as the backend can, on the peers: they get a
    /// <see cref="RankFaultException"/>. May be called from any thread, any number of times.
    /// </summary>
    public abstract void Abort(string reason);

    /// <inheritdoc/>
    public abstract void Dispose();

    protected abstract CollectiveWork AllReduceCore(Tensor tensor, ReduceOp op);
    protected abstract CollectiveWork AllGatherCore(Tensor output, Tensor input);
    protected abstract CollectiveWork ReduceScatterCore(Tensor output, Tensor input, ReduceOp op);
    protected abstract CollectiveWork AllToAllCore(Tensor output, Tensor input, long[] outputSplits, long[] inputSplits);
    protected abstract CollectiveWork BroadcastCore(Tensor tensor, int root);
    protected abstract CollectiveWork SendCore(Tensor tensor, int peer);
    protected abstract CollectiveWork ReceiveCore(Tensor tensor, int peer);
    protected abstract void BarrierCore();

    private static CollectiveWork CopySingle(Tensor output, Tensor input)
    {
        using var shaped = input.view(output.shape);
        output.copy_(shaped);
        return CollectiveWork.Completed;
    }

    private void RequireReducible(Tensor tensor, string operation, ReduceOp op) =>
        Require(op != ReduceOp.Average || tensor.is_floating_point(), operation, $"an average of {tensor.dtype} is not defined; sum and divide");

    private void Require(bool condition, string operation, string problem)
    {
        if (!condition) throw new InvalidOperationException($"{operation} in group {Name}, rank {Rank}: {problem}.");
    }

    private static long BytesOf(Tensor tensor) => tensor.numel() * tensor.element_size();
}

/// <summary>A started operation of a <see cref="ProcessGroup"/>.</summary>
public abstract class CollectiveWork : IDisposable
{
    /// <summary>An operation that is already done.</summary>
    public static CollectiveWork Completed { get; } = new CompletedWork();

    /// <summary>The operation has ended, well or not, so that Wait will not block. Never blocks itself.</summary>
    public abstract bool IsCompleted { get; }

    /// <summary>
    /// Returns when the results may be used by what the rank does next, and lets go of the tensors. CPU backends block the calling thread;
    /// device backends make the rank's current stream wait for an event of the operation and return at once, so that storage freed afterwards
    /// on that stream is not reused too early. Called on the rank's thread; the second call does nothing.
    /// </summary>
    /// <exception cref="RankFaultException">A peer was lost, the operation timed out or the group was aborted.</exception>
    public abstract void Wait();

    /// <inheritdoc/>
    public virtual void Dispose() => Wait();

    private sealed class CompletedWork : CollectiveWork
    {
        public override bool IsCompleted => true;

        public override void Wait() { }
    }
}

/// <summary>An operating fault of a rank: a lost peer, an aborted or timed-out collective. The step is not committed.</summary>
public sealed class RankFaultException : Exception
{
    /// <summary>Global rank that is to blame, when known.</summary>
    public int? CulpritRank { get; }

    public RankFaultException(string message, int? culpritRank = null, Exception? inner = null) : base(message, inner) => CulpritRank = culpritRank;
}

/// <summary>Bytes sent by one rank in one group, by operation. Written by the rank's thread only.</summary>
public sealed class CommunicationVolume
{
    private readonly Dictionary<string, long> bytesByOperation = [];

    /// <summary>Bytes by operation name.</summary>
    public IReadOnlyDictionary<string, long> BytesByOperation => bytesByOperation;

    /// <summary>Adds to one operation's count.</summary>
    public void Add(string operation, long sizeBytes) => bytesByOperation[operation] = bytesByOperation.GetValueOrDefault(operation) + sizeBytes;

    /// <summary>Starts counting anew.</summary>
    public void Reset() => bytesByOperation.Clear();
}
