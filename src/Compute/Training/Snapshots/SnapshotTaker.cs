using System.Diagnostics;
using static TorchSharp.torch;

namespace Megatron.Compute.Training.Snapshots;

/// <summary>Takes a snapshot of the run every <c>--peer_snapshot_interval</c> steps and tells the user once what that costs.</summary>
internal sealed class SnapshotTaker : IDisposable
{
    private readonly CheckpointContent content;
    private readonly PeerSnapshots snapshots;
    private readonly int? partner;
    private readonly int interval;
    private SnapshotRun? run;
    private bool isTold;

    /// <param name="content">What a rank's state is.</param>
    /// <param name="snapshots">Copies and exchanges it; disposed with this.</param>
    /// <param name="partner">Rank on another node that gets the copies; null: there is no other node.</param>
    /// <param name="interval">Steps.</param>
    public SnapshotTaker(CheckpointContent content, PeerSnapshots snapshots, int? partner, int interval) =>
        (this.content, this.snapshots, this.partner, this.interval) = (content, snapshots, partner, interval);

    /// <summary>As <see cref="PeerSnapshots.BlockedTime"/>.</summary>
    public TimeSpan BlockedTime => snapshots.BlockedTime;

    /// <summary>Called by all ranks before the first step.</summary>
    public void Prepare(RankSetup rank)
    {
        using var scope = NewDisposeScope();
        run = content.RunOf(rank);
        snapshots.Prepare(run.Facts.JobId, content.StateOf(rank));
    }

    /// <summary>Called by all ranks after each step and before they report it.</summary>
    public void AfterStep(RankSetup rank, RankLink link)
    {
        snapshots.Complete();
        if (rank.Progress.Iteration % interval != 0) return;
        using var scope = NewDisposeScope();
        var started = Stopwatch.GetTimestamp();
        run = CheckpointContent.RunAfterStep(run ?? throw new InvalidOperationException("Snapshots were not prepared."), rank);
        var sizeBytes = snapshots.Take(run, content.StateOf(rank));
        if (!isTold && link.Rank == 0) link.Notice(Describe(sizeBytes, Stopwatch.GetElapsedTime(started)));
        isTold = true;
    }

    /// <summary>Waits for the snapshot on its way; entered by all ranks when they end.</summary>
    public void Complete() => snapshots.Complete();

    /// <inheritdoc/>
    public void Dispose() => snapshots.Dispose();

    private string Describe(long sizeBytes, TimeSpan time) => FormattableString.Invariant(
        $"peer snapshots {(interval == 1 ? "each step" : Text($"every {interval} steps"))}: {sizeBytes / 1048576.0:F1} MiB of rank 0 copied in {time.TotalMilliseconds:F0} ms; ") + (partner is { } rank
            ? FormattableString.Invariant($"rank {rank} on another node gets them while training goes on")
            : "all ranks are on one node, so the copies stay there and do not survive its loss");

    private static string Text(FormattableString text) => FormattableString.Invariant(text);
}
