using System.Diagnostics;
using System.Globalization;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// A rank's side of saving: writes its part, sends the receipt, and, on rank 0, commits when the control plane holds all receipts. With
/// <c>--async_save</c> the values are copied to host memory and the rest happens on other threads while training goes on; at most one save is in
/// flight, and the next one waits for it. A disk that fails costs the save, not the run.
/// </summary>
/// <remarks>
/// <see cref="Save"/> and <see cref="Complete"/> are entered by all ranks at the same step; <see cref="Advance"/> communicates with nobody. What
/// other threads do touches the host image and files, no tensor of the rank.
/// </remarks>
public sealed class CheckpointSaver : IDisposable
{
    private static readonly TimeSpan CommitTimeout = TimeSpan.FromMinutes(10);
    private const int FailuresBeforeAlarm = 3;

    private readonly CheckpointContent content;
    private readonly CheckpointStore store;
    private readonly TimeProvider time;
    private readonly SideEffectFence fence;
    private readonly CancellationTokenSource cancellation = new();
    private HostImage? image;
    private Thread? rehearsal;
    private PendingSave? pending;
    private int failuresInARow;

    /// <summary>Iteration of the save in flight; null when there is none. The same on all ranks.</summary>
    public long? PendingIteration => pending?.Iteration;

    /// <param name="start">The attempt and this rank.</param>
    /// <param name="config">Where and what to save.</param>
    /// <param name="time">Clock of the store.</param>
    /// <param name="modelFolder">Where config.json, generation_config.json and the tokenizer are copied from.</param>
    /// <param name="link">Gets a line when old garbage cannot be removed.</param>
    /// <param name="fence">Asked right before each file operation.</param>
    public CheckpointSaver(StartRank start, TrainingConfig config, TimeProvider time, string modelFolder, RankLink link, SideEffectFence fence)
    {
        (this.time, this.fence) = (time, fence);
        content = new CheckpointContent(start, modelFolder);
        store = new CheckpointStore(config.Save ?? throw new InvalidOperationException("The run has no folder."), time, _ => fence.Check());
        if (start.Rank == 0) CollectGarbage(start, link);
    }

    /// <summary>
    /// Copies once before the first step: fresh memory and code that runs for the first time take ten times as long as a later copy, and would be
    /// the longest stall of the run. Beside the first steps another thread goes through a whole small save; the first save waits for it.
    /// </summary>
    public void Rehearse(RankSetup rank, RankLink link)
    {
        using var scope = NewDisposeScope();
        var facts = content.Facts(rank);
        var scratch = new CheckpointStore(store.TemporaryFolder(link.Attempt.Attempt, $"rehearsal-{link.Rank}"), time, _ => fence.Check());
        rehearsal = new Thread(() => SaveRehearsal.Run(scratch, facts)) { IsBackground = true, Name = "rehearsal" };
        rehearsal.Start();
        _ = (image ??= new HostImage(rank.Device)).Capture(content.Of(rank).Content);
    }

    /// <summary>
    /// Saves the run as it stands after the newest step. Entered by all ranks together, and all leave together: with the save committed or given
    /// up when <paramref name="wait"/> is set, else as soon as the values are copied.
    /// </summary>
    /// <param name="wait">Do not save in the background.</param>
    /// <returns>What became of the save before this one, or of this one; a stop command that reached rank 0 meanwhile.</returns>
    public SaveOutcome Save(RankSetup rank, RankLink link, bool wait)
    {
        var iteration = rank.Progress.Iteration;
        var earlier = SaveOutcome.Nothing;
        if (pending is { } busy)
        {
            if (link.Rank == 0 && busy.IsBusy)
                link.Notice($"the checkpoint of iteration {iteration,7} waits for that of iteration {busy.Iteration}, which is still being written; save less often or to a faster disk", RankNoticeLevel.Warning);
            earlier = Complete(rank, link);
        }
        if (link.Rank == 0) link.Notice($"saving checkpoint at iteration {iteration,7} to {store.Root} in torch_dist format");
        Start(rank, link, isInBackground: !wait);
        return wait ? Complete(rank, link).After(earlier) : earlier;
    }

    /// <summary>
    /// Moves a save in flight on by what has become possible: sends the receipt, starts the commit, reports it. Called between two steps.
    /// </summary>
    public void Advance(RankLink link)
    {
        if (pending is not { } save) return;
        if (save.Part is null && save.Writing.IsDone) TakePart(save, link);
        if (save.Committing is { IsDone: true }) TakeCommit(save, link);
    }

    /// <summary>Takes a commit command that came between two steps; one of another save is stale.</summary>
    public void Take(CommitCheckpoint commit, RankLink link)
    {
        if (pending is { } save && commit.SaveId == save.SaveId) StartCommit(save, commit);
        Advance(link);
    }

    /// <summary>Waits for the save in flight. Entered by all ranks together; all leave with the same answer.</summary>
    public SaveOutcome Complete(RankSetup rank, RankLink link)
    {
        if (pending is not { } save) return SaveOutcome.Nothing;
        var (world, device) = (rank.Parallel.World, rank.Device);
        save.Writing.Join();
        Advance(link);
        StopRank? stop = null;
        var isWritten = !HostValues.Any(world, device, save.HasFailed);
        if (isWritten && link.Rank == 0) AwaitCommit(save, link, ref stop);
        var isCommitted = isWritten && HostValues.FromFirst(world, device, save.IsCommitted ? 1 : 0) == 1;
        if (isCommitted) failuresInARow = 0;
        pending = null;
        return new SaveOutcome(isCommitted ? save.Iteration : null, stop);
    }

    /// <summary>Ends a write in flight; what it has written is garbage of this attempt.</summary>
    public void Dispose()
    {
        cancellation.Cancel();
        rehearsal?.Join();
        pending?.Writing.Join();
        pending?.Committing?.Join();
        image?.Dispose();
        cancellation.Dispose();
    }

    private void CollectGarbage(StartRank start, RankLink link)
    {
        try
        {
            store.CollectGarbage(start.Attempt.Attempt);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            link.Notice($"Unfinished saves in {store.Root} could not be removed ({exception.Message.TrimEnd('.')}); remove the folders .tmp-* by hand.", RankNoticeLevel.Warning);
        }
    }

    private void Start(RankSetup rank, RankLink link, bool isInBackground)
    {
        rehearsal?.Join();
        using var scope = NewDisposeScope();
        var started = Stopwatch.GetTimestamp();
        var (part, sizeBytes) = content.Of(rank);
        if (isInBackground) part = (image ??= new HostImage(rank.Device)).Capture(part);
        var saveId = string.Create(CultureInfo.InvariantCulture, $"{rank.Progress.Iteration}");
        var facts = link.Rank == 0 ? content.Facts(rank) : null;
        pending = new PendingSave(saveId, rank.Progress.Iteration, isInBackground, facts, rank.Config.SaveTotalLimit,
            new BackgroundWork<RankPart>($"rank {link.Rank} save {saveId}", () => Write(link, saveId, part, sizeBytes), givesWay: isInBackground));
        // Without a copy the tensors are read where they are: the rank's thread does nothing until they are written.
        if (!isInBackground) pending.Writing.Join();
        else if (link.Rank == 0) link.Notice(FormattableString.Invariant($"training goes on while it is written: {image?.SizeBytes / 1048576.0:F0} MiB copied in {Stopwatch.GetElapsedTime(started).TotalMilliseconds:F0} ms on rank 0"));
    }

    private RankPart Write(RankLink link, string saveId, RankContent part, long sizeBytes) =>
        CheckpointWriter.WriteRank(store.BeginSave(link.Attempt.Attempt, saveId, sizeBytes), link.Rank, part, cancellation.Token);

    private void TakePart(PendingSave save, RankLink link)
    {
        if (Attempt(save, link, save.Writing.Take) is not { } part) return;
        save.Part = part;
        link.Report(new CheckpointReceipt(link.Attempt, link.Rank, save.SaveId, save.Iteration, part.Files, part.ManifestPart));
    }

    private void StartCommit(PendingSave save, CommitCheckpoint commit)
    {
        // The command may come twice.
        if (save.Committing is not null || save.Facts is not { } facts) return;
        RankPart[] parts = [.. commit.Receipts.Select(receipt => new RankPart(receipt.Rank, receipt.Files, receipt.ManifestPart))];
        save.Committing = new BackgroundWork<CommitResult>($"commit {save.SaveId}", () =>
        {
            var committed = store.Commit(save.SaveId, facts, parts);
            return new CommitResult(committed, save.TotalLimit is { } limit ? TryPrune(limit) : null);
        }, givesWay: save.IsInBackground);
    }

    /// <summary>What is committed stays committed, even when the disk refuses to delete older checkpoints.</summary>
    private string? TryPrune(int limit)
    {
        try
        {
            store.Prune(limit, CheckpointVerification.Sizes);
            return null;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            return $"Checkpoints beyond --save_total_limit {limit} could not be deleted: {exception.Message}";
        }
    }

    private void TakeCommit(PendingSave save, RankLink link)
    {
        if (save.Committing is not { } committing || save.IsCommitted || save.HasFailed) return;
        if (Attempt(save, link, committing.Take) is not { } committed) return;
        save.IsCommitted = true;
        if (committed.PruneProblem is { } problem) link.Notice(problem, RankNoticeLevel.Warning);
        link.Report(new CheckpointCommitted(link.Attempt, link.Rank, save.SaveId, save.Iteration, committed.Checkpoint.Folder));
    }

    private void AwaitCommit(PendingSave save, RankLink link, ref StopRank? stop)
    {
        while (save.Committing is null && !save.IsCommitted)
        {
            var command = link.Take(CommitTimeout, $"the commit of checkpoint {save.SaveId}");
            if (command is StopRank asked) stop = asked;
            if (command is CommitCheckpoint commit && commit.SaveId == save.SaveId) StartCommit(save, commit);
        }
        save.Committing?.Join();
        Advance(link);
    }

    /// <summary>A disk that fails is a notice to the user and null; anything else ends the rank.</summary>
    private T? Attempt<T>(PendingSave save, RankLink link, Func<T> take) where T : class
    {
        if (save.HasFailed) return null;
        try
        {
            return take();
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            save.HasFailed = true;
            failuresInARow++;
            var alarm = failuresInARow >= FailuresBeforeAlarm ? $" ({failuresInARow} saves in a row have failed)" : "";
            link.Notice($"The checkpoint of iteration {save.Iteration} was not saved{alarm}: {exception.Message} Training goes on.", RankNoticeLevel.Warning);
            return null;
        }
    }

    private sealed record CommitResult(StoredCheckpoint Checkpoint, string? PruneProblem);

    /// <summary>A save between its start and its end on this rank.</summary>
    private sealed class PendingSave(string saveId, long iteration, bool isInBackground, RunFacts? facts, int? totalLimit, BackgroundWork<RankPart> writing)
    {
        public string SaveId { get; } = saveId;

        public long Iteration { get; } = iteration;

        /// <summary>Training goes on meanwhile.</summary>
        public bool IsInBackground { get; } = isInBackground;

        /// <summary>On rank 0.</summary>
        public RunFacts? Facts { get; } = facts;

        public int? TotalLimit { get; } = totalLimit;

        public BackgroundWork<RankPart> Writing { get; } = writing;

        /// <summary>What was written, once the receipt is sent.</summary>
        public RankPart? Part { get; set; }

        /// <summary>On rank 0, once all receipts are there.</summary>
        public BackgroundWork<CommitResult>? Committing { get; set; }

        public bool IsCommitted { get; set; }

        public bool HasFailed { get; set; }

        public bool IsBusy => !Writing.IsDone || (!IsCommitted && !HasFailed);
    }
}

/// <summary>What a call of <see cref="CheckpointSaver"/> brought to an end.</summary>
/// <param name="CommittedIteration">Iteration of the checkpoint that was committed; null when none was.</param>
/// <param name="Stop">A stop command that reached rank 0 meanwhile.</param>
public sealed record SaveOutcome(long? CommittedIteration, StopRank? Stop)
{
    internal static SaveOutcome Nothing { get; } = new(null, null);

    internal SaveOutcome After(SaveOutcome earlier) => new(CommittedIteration ?? earlier.CommittedIteration, Stop ?? earlier.Stop);
}
