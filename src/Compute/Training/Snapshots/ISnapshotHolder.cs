namespace Megatron.Compute.Training.Snapshots;

/// <summary>
/// The snapshots in the memory of this process as the control plane sees them: the second and last place where the planes meet (DESIGN D1, D13).
/// Only names and numbers cross; the values go over process groups and into files. Implemented by <see cref="PeerSnapshotStore"/> and by a fake in
/// the tests. Any thread may call it.
/// </summary>
public interface ISnapshotHolder
{
    /// <summary>Called when an attempt has ended: what this process holds of a job, oldest first.</summary>
    IReadOnlyList<SnapshotHolding> Find(string jobId);

    /// <summary>
    /// Writes parts of a snapshot into the temporary folder of a save, on a thread of its own. From now on attempts before that of the order change
    /// nothing here any more. Asked again for the same, it answers with the receipts of the first time.
    /// </summary>
    /// <exception cref="IOException">The disk is full or failed, or this process may not write.</exception>
    /// <exception cref="InvalidOperationException">A part is not here any more.</exception>
    Task<IReadOnlyList<CheckpointReceipt>> Write(SnapshotOrder order);

    /// <summary>Makes a checkpoint of parts that are written, on a thread of its own; called on one of the holders, which does it once.</summary>
    /// <returns>Its folder.</returns>
    /// <exception cref="IOException">The parts do not make a checkpoint, a newer attempt has committed, or the disk failed.</exception>
    Task<string> Commit(SnapshotOrder order, IReadOnlyList<CheckpointReceipt> receipts);

    /// <summary>Frees what attempts before <paramref name="attempt"/> left; called when that attempt starts and, with the largest number, when the job ends.</summary>
    void Discard(string jobId, int attempt);
}

/// <summary>Parts of one snapshot that one process holds, each of them whole.</summary>
/// <param name="Attempt">The attempt that took it.</param>
/// <param name="Iteration">Optimizer steps done.</param>
/// <param name="WorldSize">Ranks of that attempt: as many parts make a snapshot.</param>
/// <param name="Ranks">Ranks whose parts are here, ascending.</param>
public sealed record SnapshotHolding(int Attempt, long Iteration, int WorldSize, IReadOnlyList<int> Ranks);

/// <summary>What a holder writes.</summary>
/// <param name="Attempt">The attempt that will go on from it: the fence of the checkpoint.</param>
/// <param name="FromAttempt">The attempt that took the snapshot.</param>
/// <param name="Iteration">Its step.</param>
/// <param name="Ranks">Ranks of <paramref name="FromAttempt"/> whose parts this holder writes.</param>
public sealed record SnapshotOrder(AttemptId Attempt, int FromAttempt, long Iteration, IReadOnlyList<int> Ranks)
{
    /// <summary>Names the save; never used by the ranks, whose saves are named by their iteration alone.</summary>
    public string SaveId => FormattableString.Invariant($"snapshot-{Iteration}");

    /// <summary>The same for the same order.</summary>
    public string Name => FormattableString.Invariant($"{Attempt.Attempt}/{FromAttempt}/{Iteration}/{string.Join(',', Ranks)}");
}
