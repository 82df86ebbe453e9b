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
/// it says is only queued there and sent from the grain's scheduler. The session of an attempt is the silo's, for the grain may be activated anew at
/// any time: when a silo is lost, so is what it knew of where other silos' grains are.
/// </summary>
[DeviceOwnerPlacement, KeepAlive, Immovable]
internal sealed class RankGrain : Grain, IRankGrain
{
    private readonly RankWorkerRegistry workers;
    private readonly ClusterDevices cluster;
    private readonly ISiloProcess process;
    private readonly LostSilos lostSilos;
    private readonly ControlClock clock;
    private readonly ILogger<RankGrain> logger;
    private readonly CancellationTokenSource ending = new();
    private RankSession? session;
    private AttemptId? refused;

    public RankGrain(RankWorkerRegistry workers, ClusterDevices cluster, ISiloProcess process, LostSilos lostSilos, ControlClock clock, ILogger<RankGrain> logger)
    {
        this.workers = workers;
        this.cluster = cluster;
        this.process = process;
        this.lostSilos = lostSilos;
        this.clock = clock;
        this.logger = logger;
    }

    private string Device => this.GetPrimaryKeyString();

    private int LocalRank => int.Parse(Device.AsSpan(Device.LastIndexOf('/') + 1), CultureInfo.InvariantCulture);

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        session = workers.SessionOf(LocalRank);
        if (session is { } current)
            Send(current);
        return Task.CompletedTask;
    }

    public Task Start(StartRank command, string silo, string stageGrainKey)
    {
        if (!cluster.IsHere(silo))
            throw new OrleansException($"Device {Device} belongs to silo {cluster.LocalSilo}, the plan counts on {silo}.");
        if (IsRefused(command.Attempt))
        {
            GrainLog.StaleCommand(logger, command.Attempt.JobId, command.Attempt.Attempt, Device, nameof(StartRank));
            return Task.CompletedTask;
        }
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
        int localRank = LocalRank;
        var next = new RankSession(command, stageGrainKey, () => workers.MarkIdle(localRank, command.Attempt), LookForLostSilos, logger);
        session = next;
        workers.SetSession(LocalRank, next);
        Send(next);
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

    public Task<bool> Post(RankCommand command)
    {
        if (session is not { } current || current.Start.Attempt != command.Attempt)
        {
            GrainLog.StaleCommand(logger, command.Attempt.JobId, command.Attempt.Attempt, Device, command.GetType().Name);
            if (command is AbortRank && !IsRefused(command.Attempt))
                refused = command.Attempt;
            return Task.FromResult(false);
        }
        GrainLog.RankCommanded(logger, command.Attempt.JobId, command.Attempt.Attempt, current.Start.Rank, Device, command.GetType().Name);
        current.Worker?.Post(command);
        return Task.FromResult(true);
    }

    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken)
    {
        ending.Cancel();
        // Nobody else may call the device again before the rank has said more, and what it says waits for an activation.
        if (session is { IsSettled: false } current && reason.ReasonCode is not DeactivationReasonCode.ShuttingDown)
            GrainCalls.Send(GrainFactory.GetGrain<IRankGrain>(Device).Repeat(current.Start.Attempt), logger, "repeat the reports");
        return Task.CompletedTask;
    }

    // Aborted before it came, it or a newer one of its job.
    private bool IsRefused(AttemptId attempt) => refused is { } aborted && aborted.JobId == attempt.JobId && attempt.Attempt <= aborted.Attempt;

    private void Send(RankSession current) => current.Run(new GrainOutbox<SequencedReport>(reports => Deliver(current, reports), clock.Time, logger), ending.Token);

    // The grains that the fault is told to may be on the silo that is lost: the look does not wait for them. Any thread.
    private void LookForLostSilos() => GrainCalls.Send(lostSilos.LookAsync(), logger, "a silo may be lost");

    // Receipts go to the checkpoint grain, all else to the stage; the order among the reports of a rank is kept. The checkpoint grain hears of a
    // commit before the stage does, so that it is never behind the job.
    private async Task Deliver(RankSession from, IReadOnlyList<SequencedReport> reports)
    {
        var attempt = from.Start.Attempt;
        var stage = GrainFactory.GetGrain<IPipelineStageGrain>(from.StageGrainKey);
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
        from.Forget(reports[^1].Sequence);
    }
}
