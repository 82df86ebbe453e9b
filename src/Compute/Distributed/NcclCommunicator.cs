using System.Diagnostics;
using Megatron.Compute.Native;

namespace Megatron.Compute.Distributed;

/// <summary>What opens the communicators of a rank.</summary>
internal sealed record NcclContext
{
    public required Nccl Library { get; init; }

    /// <summary>Where unique ids are exchanged, under the attempt.</summary>
    public required IRendezvousStore Store { get; init; }

    /// <summary>Index of the rank's GPU in this process.</summary>
    public required int Device { get; init; }

    /// <summary>How long one operation may take.</summary>
    public required TimeSpan Timeout { get; init; }

    /// <summary>How long the members of a group may take to come.</summary>
    public required TimeSpan JoinTimeout { get; init; }

    /// <summary>Cancelled when the world is aborted.</summary>
    public required CancellationToken Ending { get; init; }

    /// <summary>
    /// Stream of all collectives of a rank whose process owns several GPUs: they run in the order in which the rank starts them, so those of two groups
    /// never wait for each other (docs/adr/0012). Null: each communicator has its own.
    /// </summary>
    public CudaStream? SharedStream { get; init; }
}

/// <summary>
/// One non-blocking NCCL communicator and the stream of its operations. They are enqueued by one thread; the watchdog looks at them and aborts
/// from another. A lock keeps the two apart, and no call stays inside the library while it is held.
/// </summary>
internal sealed unsafe class NcclCommunicator : IDisposable
{
    /// <summary>A communicator that NCCL has not freed by then waits for kernels of another one.</summary>
    private static readonly TimeSpan LongestFreeing = TimeSpan.FromSeconds(5);

    private readonly object gate = new();
    private readonly NcclContext context;
    private readonly StreamWaits waits;
    private readonly Queue<NcclWork> pending = [];
    private readonly Stack<nint> freeEvents = [];
    private nint communicator;
    private long sequence;
    private (long Number, string Operation, long Started)? launching;
    private (string Reason, int? Culprit)? fault;
    private volatile bool isFaulted;
    private Thread? freeing;

    /// <summary>For messages: the group and its global ranks.</summary>
    public string Description { get; }

    public CudaStream Stream { get; }

    /// <summary>Opens this rank's end; returns when all members have.</summary>
    /// <param name="key">Name in the store, the same on all members.</param>
    /// <param name="rank">Of <paramref name="size"/>; rank 0 makes the unique id.</param>
    /// <param name="waits">Counts how long the rank waits for operations.</param>
    /// <exception cref="RankFaultException">A member did not come in time, or NCCL failed.</exception>
    public NcclCommunicator(NcclContext context, string key, string description, int rank, int size, StreamWaits waits)
    {
        (this.context, Description, this.waits) = (context, description, waits);
        var id = ExchangeId(key, rank);
        Stream = context.SharedStream ?? new CudaStream(context.Device);
        try
        {
            var config = NcclConfig.NonBlocking;
            nint created;
            var result = context.Library.CommInitRankConfig(&created, size, id, rank, &config);
            communicator = created;
            Settle(result, "opening", context.JoinTimeout, context.Ending);
        }
        catch
        {
            Abort("it was not opened");
            DisposeOwnStream();
            throw;
        }
    }

    /// <summary>A call into NCCL that enqueues on the stream; returns its code.</summary>
    public delegate NcclResult Launch(Nccl library, nint communicator, nint stream);

    /// <summary>Enqueues an operation behind what libtorch's current stream of this thread holds.</summary>
    /// <param name="operation">Name for messages.</param>
    /// <param name="held">Tensors that live until Wait; owned by the work.</param>
    /// <exception cref="RankFaultException">The group has been aborted, or NCCL failed.</exception>
    public NcclWork Start(string operation, TorchSharp.torch.Tensor[] held, Launch launch)
    {
        nint ready;
        lock (gate) ready = RentEvent();
        try
        {
            Stream.RecordOnCurrent(ready);
            return StartAfter(ready, operation, held, launch);
        }
        finally
        {
            lock (gate) freeEvents.Push(ready);
        }
    }

    /// <summary>The same behind an event; from a thread without a current stream of its own.</summary>
    public NcclWork StartAfter(nint ready, string operation, TorchSharp.torch.Tensor[] held, Launch launch)
    {
        NcclResult result;
        lock (gate)
        {
            ThrowIfFaulted();
            Reap();
            Stream.Follow(ready);
            launching = (++sequence, operation, Stopwatch.GetTimestamp());
            result = launch(context.Library, communicator, Stream.Handle);
        }
        Settle(result, operation, context.Timeout, context.Ending);
        lock (gate)
        {
            ThrowIfFaulted();
            var done = RentEvent();
            Stream.Record(done);
            var work = new NcclWork(this, operation, sequence, done, held);
            pending.Enqueue(work);
            launching = null;
            return work;
        }
    }

    /// <summary>The operation that has been under way longest: its number, name and age. Null when there is none.</summary>
    public (long Number, string Operation, TimeSpan Age)? OldestPending
    {
        get
        {
            lock (gate)
            {
                if (pending.TryPeek(out var oldest)) return (oldest.Number, oldest.Operation, Stopwatch.GetElapsedTime(oldest.Started));
                return launching is { } current ? (current.Number, current.Operation, Stopwatch.GetElapsedTime(current.Started)) : null;
            }
        }
    }

    /// <summary>Looks for a failed peer or a failed device. Called by the watchdog, several times a second.</summary>
    /// <returns>What is wrong; null when nothing is.</returns>
    public string? FindFault()
    {
        lock (gate)
        {
            if (isFaulted || communicator == 0) return null;
            NcclResult state;
            var result = context.Library.CommGetAsyncError(communicator, &state);
            if (result == NcclResult.Success) result = state;
            if (result is not (NcclResult.Success or NcclResult.InProgress)) return $"{Description}: {context.Library.Describe(result, communicator)}";
            try
            {
                Reap();
            }
            catch (InvalidOperationException device)
            {
                return $"{Description}: the device failed: {device.Message}";
            }
            return null;
        }
    }

    /// <summary>
    /// Ends every operation here, also those on the device. From any thread, any number of times; returns at once. NCCL frees the communicator on a thread of its
    /// own, because that waits until the device is idle: for the kernels of other communicators too, which only their own abort ends.
    /// </summary>
    /// <param name="culprit">Global rank that is to blame, when known.</param>
    public void Abort(string reason, int? culprit = null)
    {
        lock (gate)
        {
            fault ??= (reason, culprit);
            isFaulted = true;
            if (communicator == 0) return;
            var aborted = communicator;
            communicator = 0;
            freeing = new Thread(() => context.Library.CommAbort(aborted)) { IsBackground = true, Name = $"abort {Description}" };
            freeing.Start();
        }
    }

    /// <exception cref="RankFaultException">The communicator has been aborted.</exception>
    public void ThrowIfFaulted()
    {
        if (!isFaulted) return;
        lock (gate) throw new RankFaultException($"{Description}: {fault?.Reason}", fault?.Culprit);
    }

    /// <summary>True when the device is through with everything, or the communicator has failed.</summary>
    public bool IsQuiet
    {
        get
        {
            lock (gate)
            {
                if (!isFaulted) Reap();
                return isFaulted || (pending.Count == 0 && launching is null);
            }
        }
    }

    /// <summary>Later work of the rank's current stream starts after the event; on the rank's thread.</summary>
    public void CurrentFollows(nint done) => waits.CurrentFollows(done);

    /// <summary>True once the operation behind <paramref name="done"/> has ended, well or not.</summary>
    public bool IsDone(nint done) => isFaulted || Stream.IsDone(done);

    /// <summary>The rank has let go of a work: its event is free once the device is through with it.</summary>
    public void Release(NcclWork work)
    {
        lock (gate)
        {
            work.IsReleased = true;
            if (work.IsReaped) freeEvents.Push(work.Done);
        }
    }

    /// <summary>Frees everything. Members that still need this rank for an operation of theirs must be done before: see the owner.</summary>
    public void Dispose()
    {
        Abort("it is closed");
        freeing?.Join(LongestFreeing);
        lock (gate)
        {
            foreach (var work in pending) Stream.DestroyEvent(work.Done);
            foreach (var free in freeEvents) Stream.DestroyEvent(free);
            pending.Clear();
            freeEvents.Clear();
        }
        DisposeOwnStream();
    }

    private void DisposeOwnStream()
    {
        if (context.SharedStream is null) Stream.Dispose();
    }

    private NcclUniqueId ExchangeId(string key, int rank)
    {
        NcclUniqueId id;
        if (rank == 0)
        {
            var result = context.Library.GetUniqueId(&id);
            if (result != NcclResult.Success) throw new RankFaultException($"{Description}: ncclGetUniqueId: {context.Library.Describe(result, 0)}");
            context.Store.Set(key, new ReadOnlySpan<byte>(id.Bytes, NcclUniqueId.Size));
            return id;
        }
        var published = context.Store.Get(key, context.JoinTimeout, context.Ending);
        if (published.Length != NcclUniqueId.Size) throw new RankFaultException($"{Description}: what its first rank published is no NCCL id.");
        published.CopyTo(new Span<byte>(id.Bytes, NcclUniqueId.Size));
        return id;
    }

    /// <summary>
    /// A non-blocking call may still be under way when it returns, for example while members connect: waits until NCCL has taken it. The lock is
    /// free meanwhile, so an abort can end it.
    /// </summary>
    private void Settle(NcclResult result, string operation, TimeSpan limit, CancellationToken ending)
    {
        var started = Stopwatch.GetTimestamp();
        var spinner = new SpinWait();
        while (result == NcclResult.InProgress)
        {
            lock (gate)
            {
                ThrowIfFaulted();
                NcclResult state;
                result = context.Library.CommGetAsyncError(communicator, &state);
                if (result == NcclResult.Success) result = state;
            }
            if (result != NcclResult.InProgress) break;
            if (ending.IsCancellationRequested) throw new RankFaultException($"{Description}: aborted while {operation}.");
            if (Stopwatch.GetElapsedTime(started) > limit)
                throw new RankFaultException(FormattableString.Invariant($"{Description}: {operation} was not done within {limit.TotalSeconds:F0} s; a member did not come."));
            spinner.SpinOnce();
        }
        if (result != NcclResult.Success) throw new RankFaultException($"{Description}: {operation}: {context.Library.Describe(result, communicator)}");
    }

    private void Reap()
    {
        while (pending.TryPeek(out var work) && Stream.IsDone(work.Done))
        {
            pending.Dequeue();
            work.IsReaped = true;
            if (work.IsReleased) freeEvents.Push(work.Done);
        }
    }

    private nint RentEvent() => freeEvents.TryPop(out var free) ? free : Stream.CreateEvent();
}

/// <summary>An operation on the communicator's stream.</summary>
internal sealed class NcclWork(NcclCommunicator communicator, string operation, long number, nint done, TorchSharp.torch.Tensor[] held) : CollectiveWork
{
    /// <summary>Name, for messages.</summary>
    public string Operation => operation;

    /// <summary>1 for the communicator's first operation.</summary>
    public long Number => number;

    /// <summary>Event at its end.</summary>
    public nint Done => done;

    /// <summary>When it was enqueued.</summary>
    public long Started { get; } = Stopwatch.GetTimestamp();

    /// <summary>The device is through with it. Guarded by the communicator.</summary>
    public bool IsReaped { get; set; }

    /// <summary>The rank has waited for it. Guarded by the communicator.</summary>
    public bool IsReleased { get; set; }

    /// <inheritdoc/>
    public override bool IsCompleted => IsReaped || communicator.IsDone(done);

    /// <summary>Returns when the device is through with it, or the communicator has failed.</summary>
    public void WaitOnHost()
    {
        var spinner = new SpinWait();
        while (!IsCompleted) spinner.SpinOnce();
    }

    /// <inheritdoc/>
    public override void Wait()
    {
        if (IsReleased) return;
        try
        {
            communicator.ThrowIfFaulted();
            communicator.CurrentFollows(done);
        }
        finally
        {
            foreach (var tensor in held) tensor.Dispose();
            communicator.Release(this);
        }
    }
}
