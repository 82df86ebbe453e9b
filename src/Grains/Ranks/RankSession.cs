using Megatron.Compute.Training;
using Megatron.Grains.Stages;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Ranks;

/// <summary>
/// One attempt on a device: what its worker said and which of it has not reached the control plane yet. Lives as long as the silo or the next attempt,
/// whatever becomes of the grain that sends. The worker's thread and the grain's turns meet here, hence the lock.
/// </summary>
internal sealed class RankSession : IDisposable
{
    private readonly CancellationTokenSource ended = new();
    private readonly Action atEnd;
    private readonly Action atFault;
    private readonly ILogger logger;
    private readonly Lock gate = new();
    private readonly List<RankReport> life = [];
    private readonly Queue<SequencedReport> unsent = [];
    private GrainOutbox<SequencedReport>? outbox;
    private CancellationTokenSource? sending;
    private long lastSequence;
    private volatile bool hasEnded;

    /// <param name="start">The command that began it.</param>
    /// <param name="stageGrainKey">Where reports go.</param>
    /// <param name="atEnd">Called on the worker's thread after its last report.</param>
    /// <param name="atFault">Called on the worker's thread, before the report of a fault is queued: what is queued may wait behind what was said before.</param>
    /// <param name="logger">Of the grain.</param>
    public RankSession(StartRank start, string stageGrainKey, Action atEnd, Action atFault, ILogger logger)
    {
        Start = start;
        StageGrainKey = stageGrainKey;
        this.atEnd = atEnd;
        this.atFault = atFault;
        this.logger = logger;
    }

    public StartRank Start { get; }

    public string StageGrainKey { get; }

    /// <summary>Null when the device could not be opened; the fault is reported then.</summary>
    public IRankWorker? Worker { get; set; }

    /// <summary>True when the worker has sent its last report; written on its thread.</summary>
    public bool HasEnded => hasEnded;

    /// <summary>True when the control plane has got all that there was to say.</summary>
    public bool IsSettled
    {
        get
        {
            lock (gate)
                return hasEnded && unsent.Count == 0;
        }
    }

    /// <summary>
    /// Sends through another outbox from now on, first of all what the one before has not delivered for certain: receivers know what they have by its
    /// number. Call it inside a turn of the grain.
    /// </summary>
    /// <param name="grainEnding">Ends the sending, not the session.</param>
    public void Run(GrainOutbox<SequencedReport> target, CancellationToken grainEnding)
    {
        lock (gate)
        {
            sending?.Cancel();
            sending?.Dispose();
            sending = CancellationTokenSource.CreateLinkedTokenSource(ended.Token, grainEnding);
            outbox = target;
            foreach (var report in unsent)
                target.Post(report);
        }
        // Runs beside the turns until the session or the activation ends; it catches all faults itself.
        _ = target.RunAsync(sending.Token);
    }

    /// <summary>On the worker's thread: number and queue, nothing more.</summary>
    public void OnReport(RankReport report)
    {
        if (report.Attempt != Start.Attempt)
            return;
        if (report is RankFaulted fault)
        {
            GrainLog.RankFaulted(logger, fault.Attempt.JobId, fault.Attempt.Attempt, fault.Rank, fault.Message, fault.Detail);
            if (!fault.IsUserError)
                atFault();
        }
        hasEnded |= report is RankFaulted or RankFinished;
        lock (gate)
        {
            Remember(report);
            Send(report);
        }
        if (hasEnded)
            atEnd();
    }

    /// <summary>Says again what matters beyond the moment, as new messages: receivers may have lost them, or know them already.</summary>
    public void Repeat()
    {
        lock (gate)
        {
            foreach (var report in life)
                Send(report);
        }
    }

    /// <summary>Reports up to a number have been delivered.</summary>
    public void Forget(long sequence)
    {
        lock (gate)
        {
            while (unsent.TryPeek(out var report) && report.Sequence <= sequence)
                unsent.Dequeue();
        }
    }

    public void Dispose()
    {
        ended.Cancel();
        ended.Dispose();
        sending?.Dispose();
    }

    // Of each kind the newest counts.
    private void Remember(RankReport report)
    {
        if (report is StepReport or EvaluationReport or RankNotice or RankBusy)
            return;
        life.RemoveAll(known => known.GetType() == report.GetType());
        life.Add(report);
    }

    private void Send(RankReport report)
    {
        var item = new SequencedReport(++lastSequence, report);
        unsent.Enqueue(item);
        outbox?.Post(item);
    }
}
