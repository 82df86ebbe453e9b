using System.Globalization;
using Megatron.Compute.Training;

namespace Megatron.Grains.Checkpoints;

/// <summary>
/// Collects the receipts of an attempt and says when a checkpoint may be committed: once every rank's part is on disk. Plain state without a grain.
/// </summary>
public sealed class CheckpointFanIn
{
    private readonly AttemptId attempt;
    private readonly int worldSize;
    private readonly Dictionary<string, Dictionary<int, CheckpointReceipt>> open = new(StringComparer.Ordinal);
    private readonly HashSet<string> committed = new(StringComparer.Ordinal);

    public CheckpointFanIn(AttemptId attempt, int worldSize)
    {
        this.attempt = attempt;
        this.worldSize = worldSize;
    }

    /// <summary>
    /// Takes a receipt; returns the commit command when all ranks have answered. A repeated receipt returns the command again while
    /// the commit has not been reported: the first delivery may have been lost, and committing twice is harmless.
    /// </summary>
    public (CommitCheckpoint? Commit, string Reason) Add(CheckpointReceipt receipt)
    {
        if (receipt.Attempt != attempt)
            return (null, Text($"receipt of attempt {receipt.Attempt.Attempt} is stale, attempt {attempt.Attempt} is current"));
        if (receipt.Rank < 0 || receipt.Rank >= worldSize)
            return (null, Text($"receipt of rank {receipt.Rank}, but the job has {worldSize} ranks"));
        if (committed.Contains(receipt.SaveId))
            return (null, "already committed");
        if (!open.TryGetValue(receipt.SaveId, out var receipts))
            open[receipt.SaveId] = receipts = [];
        if (receipts.Count > 0 && receipts.Values.First().Iteration is var iteration && iteration != receipt.Iteration)
            return (null, Text($"rank {receipt.Rank} saved step {receipt.Iteration}, other ranks step {iteration}: never committed"));
        receipts[receipt.Rank] = receipt;
        return receipts.Count < worldSize
            ? (null, Text($"{receipts.Count} of {worldSize} receipts"))
            : (new CommitCheckpoint(attempt, receipt.SaveId, receipt.Iteration, [.. receipts.Values.OrderBy(part => part.Rank)]), "all receipts");
    }

    /// <summary>The folder has its final name: the receipts are not needed any more, older unfinished saves neither.</summary>
    public void MarkCommitted(CheckpointCommitted report)
    {
        committed.Add(report.SaveId);
        foreach (var (saveId, receipts) in open.ToList())
        {
            if (saveId == report.SaveId || receipts.Values.First().Iteration < report.Iteration)
                open.Remove(saveId);
        }
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
