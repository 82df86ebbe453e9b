using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;

namespace Megatron.Grains.Snapshots;

/// <summary>
/// The snapshots in the memory of one silo, key = key of its first device; lives on that silo. Called by job grains between two attempts; passes
/// everything on to the silo's <see cref="ISnapshotHolder"/>, where each call is described.
/// </summary>
public interface ISnapshotGrain : IGrainWithStringKey
{
    /// <summary>What the silo holds of a job.</summary>
    [ResponseTimeout("00:00:02")]
    Task<IReadOnlyList<SnapshotHolding>> Find(string jobId);

    /// <summary>Writes parts of a snapshot; lasts as long as the disk takes.</summary>
    [ResponseTimeout("00:10:00")]
    Task<IReadOnlyList<CheckpointReceipt>> Write([Immutable] SnapshotOrder order);

    /// <summary>Makes a checkpoint of them; returns its folder.</summary>
    [ResponseTimeout("00:10:00")]
    Task<string> Commit([Immutable] SnapshotOrder order, [Immutable] List<CheckpointReceipt> receipts);

    /// <summary>Frees what older attempts left.</summary>
    [ResponseTimeout("00:00:05")]
    Task Discard(string jobId, int attempt);
}
