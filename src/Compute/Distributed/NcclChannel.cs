using System.Collections.Concurrent;
using Megatron.Compute.Native;

namespace Megatron.Compute.Distributed;

/// <summary>
/// Transfers from one rank to another, in one direction: a communicator of the two with a stream and a thread of its own, opened at the
/// first transfer. So a send whose peer is not there yet holds up nothing else of the rank, which the schedules of pipelines rely on.
/// </summary>
internal sealed class NcclChannel : IDisposable
{
    private readonly NcclContext context;
    private readonly StreamWaits waits;
    private readonly CancellationTokenSource ending;
    private readonly string key;
    private readonly string description;
    private readonly bool isSender;
    private readonly BlockingCollection<NcclTransfer> queue = [];
    private readonly Thread thread;
    private readonly Lock gate = new();
    private NcclCommunicator? communicator;
    private int numUnstarted;
    private string? abortReason;
    private bool isDisposed;

    /// <param name="key">Name in the store, the same on both ends.</param>
    /// <param name="waits">As for <see cref="NcclCommunicator"/>.</param>
    public NcclChannel(NcclContext context, string key, string description, bool isSender, StreamWaits waits)
    {
        (this.key, this.description, this.isSender, this.waits) = (key, description, isSender, waits);
        ending = CancellationTokenSource.CreateLinkedTokenSource(context.Ending);
        this.context = context with { Ending = ending.Token, SharedStream = null };
        thread = new Thread(Run) { IsBackground = true, Name = description };
        thread.Start();
    }

    /// <summary>Starts a transfer behind what the rank's current stream holds now.</summary>
    /// <param name="tensor">Held until Wait; owned by the work.</param>
    /// <param name="launch">Sends or receives it.</param>
    /// <param name="waitsOnHost">Wait returns when the device is through with it.</param>
    public CollectiveWork Start(TorchSharp.torch.Tensor tensor, NcclCommunicator.Launch launch, bool waitsOnHost)
    {
        var transfer = new NcclTransfer(context.Device, tensor, launch, waitsOnHost);
        lock (gate)
        {
            if (abortReason is not null) transfer.Fail(new RankFaultException($"{description}: {abortReason}"));
            else
            {
                Interlocked.Increment(ref numUnstarted);
                queue.Add(transfer);
            }
        }
        return transfer;
    }

    /// <inheritdoc cref="NcclCommunicator.FindFault"/>
    public string? FindFault()
    {
        lock (gate)
        {
            if (communicator is null) return null;
            if (communicator.FindFault() is { } fault) return fault;
            return communicator.OldestPending is { } oldest && oldest.Age > context.Timeout
                ? FormattableString.Invariant($"{description}: the {oldest.Operation} #{oldest.Number} has not finished within {oldest.Age.TotalSeconds:F1} s.") : null;
        }
    }

    /// <inheritdoc cref="NcclCommunicator.Abort"/>
    public void Abort(string reason)
    {
        lock (gate)
        {
            abortReason ??= reason;
            communicator?.Abort(reason);
            if (!isDisposed) ending.Cancel();
        }
    }

    /// <inheritdoc cref="NcclCommunicator.IsQuiet"/>
    public bool IsQuiet
    {
        get
        {
            lock (gate) return Volatile.Read(ref numUnstarted) == 0 && (communicator?.IsQuiet ?? true);
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            abortReason ??= "it is closed";
            ending.Cancel();
        }
        queue.CompleteAdding();
        thread.Join();
        communicator?.Dispose();
        queue.Dispose();
        lock (gate)
        {
            isDisposed = true;
            ending.Dispose();
        }
    }

    private void Run()
    {
        CudaStream.MakeCurrent(context.Device);
        foreach (var transfer in queue.GetConsumingEnumerable())
        {
            try
            {
                transfer.Begin((communicator ?? Open()).StartAfter(transfer.Ready, isSender ? "send" : "receive", [], transfer.Launch));
            }
            catch (Exception problem) when (problem is RankFaultException or InvalidOperationException or OperationCanceledException)
            {
                transfer.Fail(problem as RankFaultException ?? new RankFaultException($"{description}: {problem.Message}", inner: problem));
            }
            Interlocked.Decrement(ref numUnstarted);
        }
    }

    private NcclCommunicator Open()
    {
        var opened = new NcclCommunicator(context, key, description, isSender ? 0 : 1, 2, waits);
        lock (gate)
        {
            communicator = opened;
            if (abortReason is not null) opened.Abort(abortReason);
        }
        return opened;
    }
}

/// <summary>A transfer that its channel's thread enqueues.</summary>
internal sealed class NcclTransfer : CollectiveWork
{
    private readonly TorchSharp.torch.Tensor tensor;
    private readonly CudaStream events;
    private readonly bool waitsOnHost;
    private readonly ManualResetEventSlim begun = new();
    private NcclWork? work;
    private RankFaultException? problem;
    private bool isReleased;

    /// <summary>What must have happened on the device before it.</summary>
    public nint Ready { get; }

    public NcclCommunicator.Launch Launch { get; }

    public NcclTransfer(int device, TorchSharp.torch.Tensor tensor, NcclCommunicator.Launch launch, bool waitsOnHost)
    {
        (this.tensor, Launch, events, this.waitsOnHost) = (tensor, launch, CudaStream.EventsOf(device), waitsOnHost);
        Ready = events.CreateEvent();
        events.RecordOnCurrent(Ready);
    }

    /// <inheritdoc/>
    public override bool IsCompleted => problem is not null || (work?.IsCompleted ?? false);

    /// <summary>Called by the channel once the transfer is on its stream.</summary>
    public void Begin(NcclWork started)
    {
        work = started;
        begun.Set();
    }

    /// <summary>Called by the channel when it cannot be.</summary>
    public void Fail(RankFaultException exception)
    {
        problem = exception;
        begun.Set();
    }

    /// <summary>Blocks the host until the channel is open, which the peer must want too; then as <see cref="NcclWork.Wait"/>.</summary>
    public override void Wait()
    {
        if (isReleased) return;
        isReleased = true;
        begun.WaitHandle.WaitOne();
        try
        {
            if (problem is not null) throw problem;
            if (waitsOnHost) work?.WaitOnHost();
            work?.Wait();
        }
        finally
        {
            tensor.Dispose();
            events.DestroyEvent(Ready);
            begun.Dispose();
        }
    }
}
