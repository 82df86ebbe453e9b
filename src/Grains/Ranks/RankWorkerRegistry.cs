using System.Collections.Concurrent;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;

namespace Megatron.Grains.Ranks;

/// <summary>
/// The rank workers of this silo, one per device, made when first asked for, and the attempt on each. A silo singleton: rank grains come and go, the
/// threads behind them stay.
/// </summary>
public sealed class RankWorkerRegistry : IAsyncDisposable
{
    private readonly NodeIdentity node;
    private readonly Func<int, IRankWorker> create;
    private readonly ConcurrentDictionary<int, Lazy<IRankWorker>> workers = new();
    private readonly ConcurrentDictionary<int, AttemptId> busy = new();
    private readonly ConcurrentDictionary<int, RankSession> sessions = new();

    public RankWorkerRegistry(NodeIdentity node, Func<int, IRankWorker> create)
    {
        this.node = node;
        this.create = create;
    }

    /// <summary>The worker of a device.</summary>
    /// <exception cref="InvalidOperationException">This silo does not own the device.</exception>
    public IRankWorker Get(int localRank)
    {
        if (!node.Devices.Contains(localRank))
            throw new InvalidOperationException(FormattableString.Invariant($"device {localRank} of node {node.Name} is not owned by this silo"));
        return workers.GetOrAdd(localRank, index => new Lazy<IRankWorker>(() => create(index))).Value;
    }

    /// <summary>Makes every rank of this silo leave at once, whatever its attempt; any thread may call it.</summary>
    public void AbortAll(string reason)
    {
        foreach (var (index, attempt) in busy)
            Get(index).Post(new AbortRank(attempt, reason));
    }

    /// <summary>The newest attempt on a device; null before the first.</summary>
    internal RankSession? SessionOf(int localRank) => sessions.GetValueOrDefault(localRank);

    /// <summary>Called by the rank grains: an attempt begins.</summary>
    internal void SetSession(int localRank, RankSession session) => sessions[localRank] = session;

    /// <summary>Called by the rank grains: a rank begins.</summary>
    internal void MarkBusy(int localRank, AttemptId attempt) => busy[localRank] = attempt;

    /// <summary>Called on the worker's thread: the rank has said its last word.</summary>
    internal void MarkIdle(int localRank, AttemptId attempt) => busy.TryRemove(KeyValuePair.Create(localRank, attempt));

    /// <summary>Ends all workers, together.</summary>
    public async ValueTask DisposeAsync()
    {
        var started = workers.Values.Where(worker => worker.IsValueCreated).ToList();
        workers.Clear();
        await Task.WhenAll(started.Select(worker => worker.Value.DisposeAsync().AsTask()));
    }
}
