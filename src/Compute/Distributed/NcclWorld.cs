using Megatron.Compute.Configuration;
using Megatron.Compute.Native;

namespace Megatron.Compute.Distributed;

/// <summary>Who a rank is and which GPU is its.</summary>
public sealed record NcclWorldOptions
{
    /// <summary>Job and attempt, e.g. <c>job-7/2</c>: the fence. Ids of another attempt are never seen.</summary>
    public required string Attempt { get; init; }

    /// <summary>Index of the rank's GPU in this process.</summary>
    public required int Device { get; init; }

    /// <summary>The process owns more GPUs than this rank's: docs/adr/0012 says what follows from it.</summary>
    public bool SharesProcess { get; init; }

    /// <summary>How long one operation may take (<c>--distributed_timeout_minutes</c>).</summary>
    public required TimeSpan Timeout { get; init; }

    /// <summary>How long the opening of a group may wait for its members.</summary>
    public required TimeSpan JoinTimeout { get; init; }
}

/// <summary>
/// One rank's NCCL groups, one per rank and attempt, and the watchdog over them: it asks NCCL for asynchronous errors, names the operation
/// that does not finish in time, and then aborts every group of the rank, so that no kernel keeps spinning.
/// </summary>
/// <remarks>
/// Several ranks can share one GPU for tests when each is a process with an <c>NCCL_HOSTID</c> of its own (and <c>NCCL_SOCKET_IFNAME=lo</c>): NCCL
/// then takes them for different hosts and talks over sockets. Slow, but every collective is the real one.
/// </remarks>
public sealed class NcclWorld : IProcessGroupFactory, IDisposable
{
    private static readonly TimeSpan WatchInterval = TimeSpan.FromMilliseconds(50), LongestWatch = TimeSpan.FromSeconds(1);

    private readonly Lock gate = new();
    private readonly NcclContext context;
    private readonly List<NcclProcessGroup> groups = [];
    private readonly CancellationTokenSource ending = new();
    private readonly Thread watchdog;
    private readonly IRendezvousStore store;
    private readonly bool sharesProcess;
    private CudaStream? sharedStream;
    private string? abortReason;

    /// <summary>The library's version, as it counts: 22809 is 2.28.9.</summary>
    public int Version => context.Library.Version;

    /// <param name="store">Where the ranks of the attempt exchange ids; disposed with the world when it can be.</param>
    /// <exception cref="ConfigException">NATIVE013, NATIVE014: no usable NCCL.</exception>
    public NcclWorld(IRendezvousStore store, NcclWorldOptions options, LoadedLibTorch libTorch)
    {
        (this.store, sharesProcess) = (store, options.SharesProcess);
        context = new NcclContext
        {
            Library = Nccl.Load(libTorch), Store = new PrefixedRendezvousStore(store, $"{options.Attempt}/nccl/"), Device = options.Device,
            Timeout = options.Timeout, JoinTimeout = options.JoinTimeout, Ending = ending.Token,
        };
        watchdog = new Thread(Watch) { IsBackground = true, Name = "nccl-watchdog" };
        watchdog.Start();
    }

    /// <inheritdoc/>
    public ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members)
    {
        lock (gate) ThrowIfAborted();
        CudaStream.MakeCurrent(context.Device);
        if (sharesProcess) sharedStream ??= new CudaStream(context.Device);
        var group = new NcclProcessGroup(context with { SharedStream = sharedStream }, $"{name}:{string.Join(',', members)}", name, members.ToList().IndexOf(globalRank), [.. members]);
        lock (gate)
        {
            groups.Add(group);
            if (abortReason is not null) group.Abort(abortReason);
        }
        return group;
    }

    /// <summary>Aborts every group of this rank and releases a caller of <see cref="Create"/>; any thread may call it.</summary>
    public void Abort(string reason) => Abort(reason, culprit: null);

    private void Abort(string reason, int? culprit)
    {
        NcclProcessGroup[] open;
        lock (gate)
        {
            abortReason ??= reason;
            open = [.. groups];
        }
        ending.Cancel();
        foreach (var group in open) group.Abort(reason, culprit);
    }

    /// <summary>Ends the watchdog. Groups are disposed before, by those who opened them.</summary>
    public void Dispose()
    {
        lock (gate) abortReason ??= "the rank has ended";
        ending.Cancel();
        watchdog.Join(LongestWatch); // it may be asking a store that is gone
        sharedStream?.Dispose();
        (store as IDisposable)?.Dispose();
    }

    private void Watch()
    {
        CudaStream.MakeCurrent(context.Device);
        while (!ending.Token.WaitHandle.WaitOne(WatchInterval))
        {
            NcclProcessGroup[] open;
            lock (gate) open = [.. groups];
            foreach (var group in open)
            {
                if (FaultOf(group) is not { } fault) continue;
                Abort(fault.Message, fault.CulpritRank);
                return;
            }
        }
    }

    private static RankFaultException? FaultOf(NcclProcessGroup group)
    {
        try
        {
            return group.FindFault();
        }
        catch (RankFaultException storeIsGone)
        {
            return storeIsGone;
        }
        catch (Exception over) when (over is OperationCanceledException or ObjectDisposedException)
        {
            return null;
        }
    }

    private void ThrowIfAborted()
    {
        if (abortReason is not null) throw new RankFaultException($"No more NCCL groups are opened: {abortReason}");
    }
}
