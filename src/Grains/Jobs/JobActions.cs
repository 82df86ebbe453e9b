using System.Collections.Immutable;
using Megatron.Compute.Training;
using Megatron.Grains.Checkpoints;
using Megatron.Grains.Cluster;
using Megatron.Grains.Experts;
using Megatron.Grains.Ranks;
using Megatron.Grains.Rendezvous;
using Megatron.Grains.Snapshots;
using Megatron.Grains.Stages;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Jobs;

/// <summary>
/// Carries out what <see cref="JobTransitions"/> decided, within a turn of the job grain: calls to other grains, each of which may be repeated.
/// </summary>
internal sealed class JobActions
{
    private readonly IGrainFactory grains;
    private readonly ClusterDevices devices;
    private readonly ILogger logger;
    private readonly SnapshotRecovery snapshots;
    private bool isRestoring;
    private Task noted = Task.CompletedTask;

    public JobActions(IGrainFactory grains, ClusterDevices devices, ILogger logger)
    {
        this.grains = grains;
        this.devices = devices;
        this.logger = logger;
        snapshots = new SnapshotRecovery(grains, devices, logger);
    }

    /// <summary>True when the ranks could not be taken up: the silo of one of their grains was just leaving. Try again soon.</summary>
    public bool NeedsAttach { get; private set; }

    private IDevicePoolGrain Pool => grains.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key);

    /// <summary>Does one thing; returns what came of it when that moves the job.</summary>
    public async Task<JobInput?> Act(JobState state, JobAction action)
    {
        switch (action)
        {
            case JobAction.PlanLaunch:
                return await PlanLaunch(state);
            case JobAction.RestoreSnapshot:
                // Runs beside the turns, because files take long; it catches all faults itself.
                _ = RestoreSnapshotAsync(state);
                return null;
            case JobAction.StartRanks start:
                return await StartRanks(state, start);
            case JobAction.AttachRanks:
                await AttachRanks(state);
                return null;
            case JobAction.StopRanks stop:
                return await StopRanks(state, stop);
            case JobAction.AbortRanks abort:
                AbortRanks(state, abort.Reason);
                return null;
            case JobAction.RestartSilos restart:
                RestartSilos(state, restart);
                return null;
            default:
                throw new InvalidOperationException($"the job grain knows no action {action.GetType().Name}");
        }
    }

    /// <summary>
    /// The job has ended: nothing of it is committed any more, its devices are free and the directory knows. Returns when that is so, or when who
    /// should know did not answer; a silo that leaves after its last job cuts nothing short.
    /// </summary>
    public async Task Close(JobState state)
    {
        List<Task> calls = [noted, GrainCalls.TryAsync(Pool.Release(state.AttemptId.JobId), logger, "release the devices")];
        if (state.Attempt > 0)
        {
            calls.Add(GrainCalls.TryAsync(grains.GetGrain<ICheckpointGrain>(state.AttemptId.JobId).End(state.AttemptId), logger, "end the saves"));
            if (state.Plan is not null)
                calls.Add(GrainCalls.TryAsync(RendezvousOf(state).Close(), logger, "close the rendezvous"));
            if (state.Spec is { TakesSnapshots: true })
                calls.Add(snapshots.DiscardAsync(state.AttemptId.JobId, int.MaxValue));
        }
        await Task.WhenAll(calls);
    }

    /// <summary>What the job could have now that it has fewer replicas than it asked for; null when there are no more devices than it has.</summary>
    public async Task<string?> FindLargerPlan(JobState state)
    {
        if (state is not { Spec: { } spec, Plan: { } plan })
            return null;
        var pool = await Pool.GetState();
        var taken = pool.Reservations.Where(reservation => reservation.JobId != spec.JobId).SelectMany(reservation => reservation.Devices).ToHashSet();
        var (larger, reason) = RecoveryPlanner.Plan(spec, [.. devices.All().Where(device => !taken.Contains(device.Id) && !state.Excluded.Contains(device))]);
        return larger?.WorldSize > plan.WorldSize ? reason : null;
    }

    /// <summary>Passes on what the routers of a stage counted.</summary>
    public void TellExperts(JobState state, StageStepReport step, IReadOnlyList<long> tokens)
    {
        if (state is not { Spec: { } spec, Plan: { } plan })
            return;
        var counts = new ExpertCounts(state.AttemptId, step.Stage, step.Iteration, tokens, spec.Grid, plan.WorldSize);
        GrainCalls.Send(grains.GetGrain<IExpertShardGrain>(spec.JobId).Record(counts), logger, "the load of the experts");
    }

    /// <summary>Renews the job's line in the directory: clients list it there, and it is how a lost job is found again.</summary>
    public async Task NoteInDirectory(JobState state)
    {
        if (state.Spec is not { } spec)
            return;
        var note = grains.GetGrain<IJobDirectory>(IJobDirectory.Key).Note(new JobSummary(
            spec.JobId, spec.Name, state.Phase, state.Attempt, state.LastIteration, state.Plan?.WorldSize ?? spec.WorldSize, state.SubmittedAt,
            state.EndedAt, state.Reason, state.Revision));
        // A job that nobody would find after a loss must not be called submitted; later changes can wait.
        if (state.Phase is JobPhase.Queued)
            await note;
        else
            noted = GrainCalls.TryAsync(note, logger, "renew the line in the job directory");
    }

    private async Task<JobInput?> PlanLaunch(JobState state)
    {
        var spec = state.Spec ?? throw new InvalidOperationException("a launch without a spec");
        try
        {
            var answer = await Pool.Reserve(new DeviceRequest(spec, state.Attempt + 1, state.Excluded));
            if (answer.Plan is { } plan)
                return new JobInput.LaunchPlanned(plan, answer.Reason);
            return answer.IsWaiting ? new JobInput.LaunchWaiting(answer.Reason) : new JobInput.LaunchRefused(answer.Reason);
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException)
        {
            // A timeout means unknown: the job asks again soon, and the same attempt may be reserved twice.
            return new JobInput.LaunchWaiting("the device pool does not answer: " + fault.Message);
        }
    }

    private async Task RestoreSnapshotAsync(JobState state)
    {
        if (isRestoring)
            return;
        isRestoring = true;
        try
        {
            var (checkpoint, problem) = await snapshots.RunAsync(state);
            await grains.GetGrain<IJobControl>(state.AttemptId.JobId).OnSnapshotSettled(state.Attempt, checkpoint, problem);
        }
        catch (Exception fault)
        {
            // The job asks again by its clock; a snapshot that is on disk already is written once more.
            GrainLog.CallFailed(logger, "settle the snapshots", fault.Message);
        }
        finally
        {
            isRestoring = false;
        }
    }

    private async Task<JobInput?> StartRanks(JobState state, JobAction.StartRanks start)
    {
        var attempt = state.AttemptId;
        try
        {
            if (state is { Spec.TakesSnapshots: true, Attempt: > 1 })
                _ = snapshots.DiscardAsync(attempt.JobId, attempt.Attempt); // catches all faults itself
            if (!start.IsRepeated)
                await RendezvousOf(state).Open(state.AttemptId.JobId);
            await BeginCheckpoints(state);
            await ForEachStage(state, (stage, number) => stage.Start(LaunchOf(state, number, start.LoadFolder)));
            NeedsAttach = false;
            return null;
        }
        catch (Exception fault) when (start.IsRepeated && fault is (OrleansException or TimeoutException))
        {
            GrainLog.CallFailed(logger, "start the ranks again", fault.Message);
            NeedsAttach = true;
            return null;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException or InvalidOperationException)
        {
            return new JobInput.AttemptFaulted(attempt.Attempt, "A rank could not be started: " + fault.Message);
        }
    }

    private async Task AttachRanks(JobState state)
    {
        try
        {
            await BeginCheckpoints(state);
            await ForEachStage(state, (stage, number) => stage.Attach(LaunchOf(state, number, state.Checkpoint?.Folder)));
            NeedsAttach = false;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException)
        {
            GrainLog.CallFailed(logger, "take up the ranks", fault.Message);
            NeedsAttach = true;
        }
    }

    // A stop that does not reach a rank ends the attempt: the rank cannot be steered any more. One that is repeated has probably reached it before.
    private async Task<JobInput?> StopRanks(JobState state, JobAction.StopRanks stop)
    {
        if (state.Plan is null)
            return null;
        try
        {
            var command = new StopRank(state.AttemptId, stop.SaveCheckpoint, stop.Reason);
            await ForEachStage(state, (stage, _) => stage.Broadcast(command));
            return null;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException)
        {
            NeedsAttach |= stop.IsRepeated;
            return stop.IsRepeated ? null : new JobInput.AttemptFaulted(state.Attempt, "A rank could not be reached: " + fault.Message);
        }
    }

    // Not awaited: one of the ranks is often gone. Each rank says by its last report that it has ended; the job's clock sees to those that do not.
    private void AbortRanks(JobState state, string reason)
    {
        if (state.Plan is null)
            return;
        GrainCalls.Send(RendezvousOf(state).Close(), logger, "close the rendezvous");
        var abort = new AbortRank(state.AttemptId, reason);
        foreach (int number in Enumerable.Range(0, state.Plan.NumStages))
            GrainCalls.Send(Stage(state, number).Broadcast(abort), logger, "abort the ranks");
    }

    private void RestartSilos(JobState state, JobAction.RestartSilos restart)
    {
        foreach (string silo in restart.Silos)
        {
            if (state.Plan?.Ranks.FirstOrDefault(rank => rank.Silo == silo) is { } rank)
                GrainCalls.Send(grains.GetGrain<IRankGrain>(rank.Device.GrainKey).RestartSilo(silo, restart.Reason), logger, "restart a silo");
        }
    }

    private Task BeginCheckpoints(JobState state)
    {
        var plan = PlanOf(state);
        return grains.GetGrain<ICheckpointGrain>(state.AttemptId.JobId).Begin(state.AttemptId, plan.WorldSize, plan.Ranks[0].Device.GrainKey);
    }

    private static StageLaunch LaunchOf(JobState state, int number, string? loadFolder)
    {
        var (attempt, plan) = (state.AttemptId, PlanOf(state));
        string config = state.Spec?.ConfigJson ?? "";
        string endpoint = plan.RendezvousScheme + RendezvousKeyOf(state);
        ImmutableArray<int> partners = state.Spec is { TakesSnapshots: true } ? SnapshotPlanner.Partners(plan) : [];
        return new StageLaunch(attempt, number, [.. plan.StageRanks(number).Select(rank => new RankStart(
            rank.Device.GrainKey, new StartRank(attempt, config, rank.Rank, plan.WorldSize, rank.Device.LocalRank, endpoint, loadFolder)
            {
                SnapshotPartners = partners,
                NumThreads = rank.NumThreads,
            }, rank.Silo))], state.Spec?.Grid.WorkOf(number));
    }

    private Task ForEachStage(JobState state, Func<IPipelineStageGrain, int, Task> call) =>
        Task.WhenAll(Enumerable.Range(0, PlanOf(state).NumStages).Select(number => call(Stage(state, number), number)));

    private IPipelineStageGrain Stage(JobState state, int number) =>
        grains.GetGrain<IPipelineStageGrain>(IPipelineStageGrain.KeyOf(state.AttemptId.JobId, number));

    private IRendezvousGrain RendezvousOf(JobState state) => grains.GetGrain<IRendezvousGrain>(RendezvousKeyOf(state));

    private static string RendezvousKeyOf(JobState state) => IRendezvousGrain.KeyOf(state.AttemptId, PlanOf(state).Ranks[0].Device.GrainKey);

    private static LaunchPlan PlanOf(JobState state) => state.Plan ?? throw new InvalidOperationException("ranks without a plan");
}
