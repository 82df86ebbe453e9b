using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Ranks;
using Orleans.Concurrency;
using Orleans.Placement;

namespace Megatron.Grains.Snapshots;

/// <inheritdoc cref="ISnapshotGrain"/>
/// <remarks>Reentrant, because a write lasts long and other jobs ask meanwhile: the grain has no state, and the holder locks its own.</remarks>
[DeviceOwnerPlacement, KeepAlive, Immovable, Reentrant]
internal sealed class SnapshotGrain : Grain, ISnapshotGrain
{
    private readonly ISnapshotHolder holder;

    public SnapshotGrain(ISnapshotHolder holder) => this.holder = holder;

    public Task<IReadOnlyList<SnapshotHolding>> Find(string jobId) => Task.FromResult(holder.Find(jobId));

    public Task<IReadOnlyList<CheckpointReceipt>> Write(SnapshotOrder order) => holder.Write(order);

    public Task<string> Commit(SnapshotOrder order, List<CheckpointReceipt> receipts) => holder.Commit(order, receipts);

    public Task Discard(string jobId, int attempt)
    {
        holder.Discard(jobId, attempt);
        return Task.CompletedTask;
    }
}
