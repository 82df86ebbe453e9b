using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Checkpoints;
using Megatron.Grains.Cluster;
using Megatron.Grains.Stages;
using Microsoft.Extensions.Logging;
using Orleans.Placement;

namespace Megatron.Grains.Ranks;

/// <summary>
/// Forwards commands to the worker of its device and reports to the stage and checkpoint grains. The worker calls back on its own thread; what
/// it says is only queued there and sent from the grain's scheduler. The worker's thread and the grain's turns meet in the session, hence its lock.
/// </summary>
[DeviceOwnerPlacement, KeepAlive, Immovable]
internal sealed class RankGrain : Grain, IRankGrain
{
    private readonly RankWorkerRegistry workers;
    private readonly ClusterDevices cluster;
    private readonly ISiloProcess process;
    private readonly ControlClock clock;
    private readonly ILogger<RankGrain> logger;
    private Session? session;

    public RankGrain(RankWorkerRegistry workers, ClusterDevices cluster, ISiloProcess process, ControlClock clock, ILogger<RankGrain> logger)
    {
        this.workers = workers;
        this.cluster = cluster;
        this.process = process;
        this.clock = clock;
        this.logger = logger;
    }

    private string Device => this.GetPrimaryKeyString();

    private int LocalRank => int.Parse(Device.AsSpan(Device.LastIndexOf('/') + 1), CultureInfo.InvariantCulture);

    public Task Start(StartRank command, string silo, string stageGrainKey)
    {
        if (silo != cluster.LocalSilo)
            throw new OrleansException($"Device {Device} belongs to silo {cluster.LocalSilo}, the plan counts on {silo}.");
        if (session is { } old)
        {
            bool sameJob = old.Start.Attempt.JobId == command.Attempt.JobId;
            if (command.Attempt == old.Start.Attempt)
            {
                old.Repeat();
                return Task.CompletedTask;
            }
            if (sameJob && command.Attempt.Attempt < old.Start.Attempt.Attempt)
            {
                GrainLog.StaleCommand(logger, command.Attempt.JobId, command.Attempt.Attempt, Device, nameof(StartRank));
                return Task.CompletedTask;
            }
            if (!sameJob && !old.HasEnded)
                throw new InvalidOperationException($"Device {Device} is busy with job '{old.Start.Attempt.JobId}'.");
            old.Dispose();
        }
        GrainLog.RankCommanded(logger, command.Attempt.JobId, command.Attempt.Attempt, command.Rank, Device, nameof(StartRank));
        var next = new Session(command, () => workers.MarkIdle(LocalRank, command.Attempt), logger);
        session = next;
        next.Run(new GrainOutbox<SequencedReport>(reports => Deliver(next, stageGrainKey, reports), clock.Time, logger));
        try
        {
            workers.MarkBusy(LocalRank, command.Attempt);
            var worker = workers.Get(LocalRank);
            worker.Subscribe(next.OnReport);
            next.Worker = worker;
            worker.Post(command);
        }
        catch (Exception fault)
        {
            // A device that cannot be opened is a fault of the rank like any other: it takes the same way to the job and the user.
            next.OnReport(new RankFaulted(command.Attempt, command.Rank, fault.Message, fault is ConfigException, fault.ToString()));
        }
        return Task.CompletedTask;
    }

    public Task RestartSilo(string silo, string reason)
    {
        if (silo == cluster.LocalSilo)
            process.RequestRestart(reason);
        return Task.CompletedTask;
    }

    public Task Repeat(AttemptId attempt)
    {
        if (session is { } current && current.Start.Attempt == attempt)
            current.Repeat();
        return Task.CompletedTask;
    }

    public Task Post(RankCommand command)
    {
        if (session is not { } current || current.Start.Attempt != command.Attempt)
        {
            GrainLog.StaleCommand(logger, command.Attempt.JobId, command.Attempt.Attempt, Device, command.GetType().Name);
            return Task.CompletedTask;
        }
        GrainLog.RankCommanded(logger, command.Attempt.JobId, command.Attempt.Attempt, current.Start.Rank, Device, command.GetType().Name);
        current.Worker?.Post(command);
        return Task.CompletedTask;
    }

    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken)
    {
        session?.Dispose();
        return Task.CompletedTask;
    }

    // Receipts go to the checkpoint grain, all else to the stage; the order among the reports of a rank is kept. The checkpoint grain hears of a
    // commit before the stage does, so that it is never behind the job.
    private async Task Deliver(Session from, string stageGrainKey, IReadOnlyList<SequencedReport> reports)
    {
        var attempt = from.Start.Attempt;
        var stage = GrainFactory.GetGrain<IPipelineStageGrain>(stageGrainKey);
        var checkpoints = GrainFactory.GetGrain<ICheckpointGrain>(attempt.JobId);
        List<SequencedReport> forStage = [];
        foreach (var item in reports)
        {
            if (item.Report is CheckpointReceipt receipt)
            {
                await checkpoints.AddReceipt(receipt);
                continue;
            }
            if (item.Report is CheckpointCommitted committed)
                await checkpoints.MarkCommitted(committed);
            forStage.Add(item);
        }
        if (forStage.Count > 0)
            await stage.OnReports(attempt, from.Start.Rank, forStage);
    }

    /// <summary>One attempt on this device.</summary>
    private sealed class Session : IDisposable
    {
        private readonly CancellationTokenSource ended = new();
        private readonly Action atEnd;
        private readonly ILogger logger;
        private GrainOutbox<SequencedReport>? outbox;
        private readonly Lock gate = new();
        private readonly List<RankReport> life = [];
        private long lastSequence;
        private volatile bool hasEnded;

        public Session(StartRank start, Action atEnd, ILogger logger)
        {
            Start = start;
            this.atEnd = atEnd;
            this.logger = logger;
        }

        public StartRank Start { get; }

        /// <summary>Null when the device could not be opened; the fault is reported then.</summary>
        public IRankWorker? Worker { get; set; }

        /// <summary>True when the worker has sent its last report; written on its thread.</summary>
        public bool HasEnded => hasEnded;

        public void Run(GrainOutbox<SequencedReport> target)
        {
            outbox = target;
            // Runs beside the turns until the session ends; it catches all faults itself.
            _ = target.RunAsync(ended.Token);
        }

        /// <summary>On the worker's thread: number and queue, nothing more.</summary>
        public void OnReport(RankReport report)
        {
            if (report.Attempt != Start.Attempt)
                return;
            if (report is RankFaulted fault)
                GrainLog.RankFaulted(logger, fault.Attempt.JobId, fault.Attempt.Attempt, fault.Rank, fault.Message, fault.Detail);
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

        // Of each kind the newest counts.
        private void Remember(RankReport report)
        {
            if (report is StepReport or EvaluationReport or RankNotice or RankBusy)
                return;
            life.RemoveAll(known => known.GetType() == report.GetType());
            life.Add(report);
        }

        private void Send(RankReport report) => outbox?.Post(new SequencedReport(++lastSequence, report));

        public void Dispose()
        {
            ended.Cancel();
            ended.Dispose();
        }
    }
}
