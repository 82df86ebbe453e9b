using System.Runtime.CompilerServices;
using Megatron.Compute.Training;
using Megatron.Grains.Checkpoints;
using Megatron.Grains.Stages;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Jobs;

/// <summary>
/// Holds the durable state of one job: gathers inputs, lets <see cref="JobTransitions"/> decide, stores, acts. Turns do not interleave, except
/// for <see cref="Watch"/>, which only reads the event ring.
/// </summary>
[CollectionAgeLimit(Days = 1)]
internal sealed class JobGrain : Grain, IJobGrain, IJobReports
{
    private const int EventRingSize = 8192;

    private readonly IPersistentState<JobState> storage;
    private readonly ClusterDevices devices;
    private readonly TimeProvider time;
    private readonly ILogger<JobGrain> logger;
    private readonly JobEventLog events = new(EventRingSize);
    private readonly Dictionary<(int Attempt, int Stage), long> lastSequences = [];
    private JobState state = JobState.Empty;
    private long numStale;

    public JobGrain(
        [PersistentState("job", GrainServices.JobStorage)] IPersistentState<JobState> storage, ClusterDevices devices, TimeProvider time,
        ILogger<JobGrain> logger)
    {
        this.storage = storage;
        this.devices = devices;
        this.time = time;
        this.logger = logger;
    }

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        if (storage.RecordExists)
            state = storage.State;
        if (state.IsTerminal)
            AppendPhase("read from storage");
        return Task.CompletedTask;
    }

    public async Task<SubmitResult> Submit(JobSpec spec)
    {
        if (spec.JobId != this.GetPrimaryKeyString())
            return new SubmitResult(false, $"The spec of job '{spec.JobId}' was submitted to '{this.GetPrimaryKeyString()}'.", Status());
        var decision = await Apply(new JobInput.Submitted(spec));
        return new SubmitResult(decision.Verdict is not JobVerdict.Refused, decision.Reason, Status());
    }

    public Task<JobStatus> GetStatus() => Task.FromResult(Status());

    public async Task<JobStatus> Cancel(bool save)
    {
        await Apply(new JobInput.CancelRequested(save));
        return Status();
    }

    public async IAsyncEnumerable<JobEvent> Watch(long fromSequence, [EnumeratorCancellation] CancellationToken cancellation)
    {
        if (state.Spec is null)
            yield break;
        await foreach (var item in events.ReadFrom(fromSequence, cancellation))
            yield return item;
    }

    public async Task OnStage(List<StageMessage> messages)
    {
        foreach (var message in messages)
        {
            var key = (message.Attempt.Attempt, message.Stage);
            if (message.Sequence <= lastSequences.GetValueOrDefault(key))
                continue;
            await Take(message);
            lastSequences[key] = message.Sequence;
        }
    }

    private async Task Take(StageMessage message)
    {
        if (message.Step is { } step)
            await TakeStep(message, step);
        else if (message.Evaluation is { } evaluation)
            Announce(message, (sequence, now) => new JobEvaluated(sequence, now, evaluation));
        else if (message.Report is { } report)
            await TakeReport(message, report);
    }

    private async Task TakeStep(StageMessage message, StageStepReport step)
    {
        if (message.Stage != (state.Plan?.NumStages ?? 1) - 1)
            return;
        int attempt = message.Attempt.Attempt;
        if (!step.BatchHashesAgree)
        {
            await Apply(new JobInput.AttemptFailed(attempt, FormattableString.Invariant($"The ranks trained on different batches at step {step.Iteration}.")));
            return;
        }
        var decision = await Apply(new JobInput.StepDone(attempt, step.Iteration));
        if (decision.Verdict is not JobVerdict.Accepted)
            return;
        GrainLog.StepDone(logger, message.Attempt.JobId, attempt, step.Iteration, step.Loss, step.GradNorm, step.StepTime.TotalMilliseconds);
        Announce(message, (sequence, now) => new JobStepDone(sequence, now, step));
    }

    private async Task TakeReport(StageMessage message, RankReport report)
    {
        int attempt = message.Attempt.Attempt;
        switch (report)
        {
            case RankStarted started:
                await Apply(new JobInput.RankStarted(attempt, started.Rank, started.FirstIteration, started.DataPlanHash));
                break;
            case RankFinished finished:
                await Apply(new JobInput.RankFinished(attempt, finished.Rank, finished.LastIteration, finished.Completed));
                break;
            case RankFaulted faulted:
                await Apply(new JobInput.RankFaulted(attempt, faulted.Rank, faulted.Message, faulted.IsUserError));
                break;
            case CheckpointCommitted committed:
                var checkpoint = new CommittedCheckpoint(committed.Iteration, committed.Folder);
                if ((await Apply(new JobInput.CheckpointCommitted(attempt, checkpoint))).Verdict is JobVerdict.Accepted)
                    Announce(message, (sequence, now) => new JobCheckpointSaved(sequence, now, checkpoint));
                break;
            case TrainingPlanned planned:
                Announce(message, (sequence, now) => new JobPlanned(sequence, now, planned, state.Plan?.WorldSize ?? 1));
                break;
            case RankNotice notice:
                Announce(message, (sequence, now) => new JobNotice(sequence, now, notice.Rank, notice.Level, notice.Text));
                break;
            default:
                throw new InvalidOperationException($"the job grain knows no report {report.GetType().Name}");
        }
    }

    private async Task<JobDecision> Apply(JobInput first)
    {
        JobDecision? answer = null;
        var pending = new Queue<JobInput>([first]);
        while (pending.TryDequeue(out var input))
        {
            var decision = JobTransitions.Next(state, input, time.GetUtcNow());
            answer ??= decision;
            if (decision.Verdict is not JobVerdict.Accepted)
            {
                numStale += decision.Verdict is JobVerdict.Refused ? 0 : 1;
                GrainLog.InputIgnored(logger, this.GetPrimaryKeyString(), input.GetType().Name, decision.Verdict, decision.Reason);
                continue;
            }
            await Store(decision, input);
            foreach (var action in decision.Actions)
            {
                if (await Act(action) is { } next)
                    pending.Enqueue(next);
            }
            if (state.IsTerminal)
                await CloseCheckpoints();
        }
        return answer ?? throw new InvalidOperationException("the first input was not applied");
    }

    // Stored before anything is done or told (style 21). The step counter alone is not worth a write: the checkpoint says where a job goes on.
    private async Task Store(JobDecision decision, JobInput input)
    {
        bool phaseChanged = decision.State.Phase != state.Phase || decision.State.Attempt != state.Attempt;
        if (input is not JobInput.StepDone)
        {
            storage.State = decision.State;
            await storage.WriteStateAsync();
        }
        state = decision.State;
        if (phaseChanged)
            AppendPhase(decision.Reason);
    }

    private async Task<JobInput?> Act(JobAction action)
    {
        switch (action)
        {
            case JobAction.PlanLaunch:
                var spec = state.Spec ?? throw new InvalidOperationException("a launch without a spec");
                var (plan, reason) = LaunchPlanner.Plan(spec, devices.All());
                return plan is null ? new JobInput.LaunchRefused(reason) : new JobInput.LaunchPlanned(plan, reason);
            case JobAction.StartRanks start:
                return await StartRanks(start.LoadFolder);
            case JobAction.StopRanks stop:
                return await Broadcast(new StopRank(state.AttemptId, stop.SaveCheckpoint, stop.Reason));
            case JobAction.AbortRanks abort:
                return await Broadcast(new AbortRank(state.AttemptId, abort.Reason));
            default:
                throw new InvalidOperationException($"the job grain knows no action {action.GetType().Name}");
        }
    }

    private async Task<JobInput?> StartRanks(string? loadFolder)
    {
        if (state is not { Spec: { } spec, Plan: { } plan })
            throw new InvalidOperationException("ranks without a plan");
        var attempt = state.AttemptId;
        try
        {
            await GrainFactory.GetGrain<ICheckpointGrain>(spec.JobId).Begin(attempt, plan.WorldSize, plan.Ranks[0].Device.GrainKey);
            string endpoint = FormattableString.Invariant($"{plan.RendezvousEndpoint}/{attempt.Attempt}");
            await ForEachStage(plan, (stage, number) => stage.Start(new StageLaunch(attempt, number, [.. plan.StageRanks(number).Select(rank =>
                new RankStart(rank.Device.GrainKey,
                    new StartRank(attempt, spec.ConfigJson, rank.Rank, plan.WorldSize, rank.Device.LocalRank, endpoint, loadFolder)))])));
            return null;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException or InvalidOperationException)
        {
            return new JobInput.AttemptFailed(attempt.Attempt, "A rank could not be started: " + fault.Message);
        }
    }

    // A stop that does not reach a rank ends the attempt: the rank cannot be steered any more.
    private async Task<JobInput?> Broadcast(RankCommand command)
    {
        if (state.Plan is not { } plan)
            return null;
        try
        {
            await ForEachStage(plan, (stage, _) => stage.Broadcast(command));
            return null;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException)
        {
            return new JobInput.AttemptFailed(command.Attempt.Attempt, "A rank could not be reached: " + fault.Message);
        }
    }

    private Task ForEachStage(LaunchPlan plan, Func<IPipelineStageGrain, int, Task> call) => Task.WhenAll(Enumerable.Range(0, plan.NumStages)
        .Select(number => call(GrainFactory.GetGrain<IPipelineStageGrain>(IPipelineStageGrain.KeyOf(state.AttemptId.JobId, number)), number)));

    private Task CloseCheckpoints() => state.Attempt == 0
        ? Task.CompletedTask
        : GrainFactory.GetGrain<ICheckpointGrain>(state.AttemptId.JobId).End(state.AttemptId);

    private void AppendPhase(string reason)
    {
        GrainLog.PhaseChanged(logger, this.GetPrimaryKeyString(), state.Attempt, state.Phase, reason);
        events.Append(sequence => new JobPhaseChanged(sequence, time.GetUtcNow(), state.Phase, state.Attempt, reason, state.Outcome));
        if (state.IsTerminal)
            events.Complete();
    }

    // Things to tell that move nothing: only of the current attempt of a living job.
    private void Announce(StageMessage message, Func<long, DateTimeOffset, JobEvent> create)
    {
        if (message.Attempt.Attempt == state.Attempt && !state.IsTerminal)
            events.Append(sequence => create(sequence, time.GetUtcNow()));
        else
            numStale++;
    }

    private JobStatus Status() => new()
    {
        JobId = this.GetPrimaryKeyString(),
        Name = state.Spec?.Name ?? "",
        Phase = state.Phase,
        Attempt = state.Attempt,
        LastIteration = state.LastIteration,
        Checkpoint = state.Checkpoint,
        Outcome = state.Outcome,
        NumStaleMessages = numStale,
    };
}
