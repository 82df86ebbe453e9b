using System.Collections.Concurrent;
using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;

namespace Megatron.Testing;

/// <summary>Snapshots without values: a silo that holds what a test says and remembers what was asked of it.</summary>
public sealed class FakeSnapshotHolder : ISnapshotHolder
{
    /// <summary>What it says it holds, of whatever job.</summary>
    public IReadOnlyList<SnapshotHolding> Holdings { get; set; } = [];

    /// <summary>Thrown by <see cref="Write"/>.</summary>
    public Exception? WriteFault { get; set; }

    /// <summary>Orders to write, in their order.</summary>
    public ConcurrentQueue<SnapshotOrder> Written { get; } = [];

    /// <summary>Orders to commit, with the ranks whose receipts came along.</summary>
    public ConcurrentQueue<(SnapshotOrder Order, IReadOnlyList<int> Ranks)> Committed { get; } = [];

    /// <summary>First attempt that was kept, newest last.</summary>
    public ConcurrentQueue<int> Discards { get; } = [];

    /// <inheritdoc/>
    public IReadOnlyList<SnapshotHolding> Find(string jobId) => Holdings;

    /// <inheritdoc/>
    public Task<IReadOnlyList<CheckpointReceipt>> Write(SnapshotOrder order)
    {
        Written.Enqueue(order);
        if (WriteFault is { } fault) return Task.FromException<IReadOnlyList<CheckpointReceipt>>(fault);
        IReadOnlyList<CheckpointReceipt> receipts = [.. order.Ranks.Select(rank => new CheckpointReceipt(order.Attempt, rank, order.SaveId, order.Iteration, [], "{}"))];
        return Task.FromResult(receipts);
    }

    /// <inheritdoc/>
    public Task<string> Commit(SnapshotOrder order, IReadOnlyList<CheckpointReceipt> receipts)
    {
        Committed.Enqueue((order, [.. receipts.Select(receipt => receipt.Rank)]));
        return Task.FromResult(FormattableString.Invariant($"/run/iter_{order.Iteration:D7}"));
    }

    /// <inheritdoc/>
    public void Discard(string jobId, int attempt) => Discards.Enqueue(attempt);
}
