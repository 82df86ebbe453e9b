using System.Collections.Immutable;
using System.Runtime.CompilerServices;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Stages;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Jobs;

/// <summary>
/// Holds the durable state of one job: gathers inputs, lets <see cref="JobTransitions"/> decide, stores, lets <see cref="JobActions"/> act. Turns do
/// not interleave, except for <see cref="Watch"/>, which only reads the event ring.
/// </summary>
[CollectionAgeLimit(Days = 1)]
internal sealed class JobGrain : Grain, IJobGrain, IJobReports, IJobControl
{
    private const int EventRingSize = 8192;

    /// <summary>More events than an activation appends between two stored states.</summary>
    private const long EventGap = 1_000_000;

    private readonly IPersistentState<JobState> storage;
    private readonly JobTimings timings;
    private readonly TimeProvider time;
    private readonly ILogger<JobGrain> logger;
    private readonly JobActions actions;
    private readonly ProgressWatches progress;
    private readonly StageBoard stages = new();
    private readonly JobEventLog events = new(EventRingSize);
    private readonly Dictionary<(int Attempt, int Stage, Guid Incarnation), long> lastSequences = [];
    private readonly CancellationTokenSource ending = new();
    private readonly Guid activation = Guid.NewGuid();
    private readonly GrainOutbox<string> ledger;
    private JobState state = JobState.Empty;
    private MembershipView view = new(-1, []);
    private LooksAfter looks = new(0, []);
    private long phaseSince;
    private readonly ClusterDevices devices;
    private long retriedAt;
    private long numStale;
    private bool isTicking;
    private bool wantsMoreReplicas;

    public JobGrain(
        [PersistentState("job", GrainServices.JobStorage)] IPersistentState<JobState> storage, ClusterDevices devices, IGrainFactory grains,
        JobTimings timings, ControlClock clock, ILogger<JobGrain> logger)
    {
        this.storage = storage;
        this.devices = devices;
        this.timings = timings;
        this.logger = logger;
        time = clock.Time;
        actions = new JobActions(grains, devices, logger);
        progress = new ProgressWatches(timings);
        ledger = new GrainOutbox<string>(lines => JobLedger.AppendAsync(state.Spec?.OutputFolder ?? "", lines), time, logger);
    }

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        phaseSince = retriedAt = time.GetTimestamp();
        // Runs beside the turns until the end of the activation; it catches all faults itself.
        _ = ledger.RunAsync(ending.Token);
        if (!storage.RecordExists)
            return Task.CompletedTask;
        state = storage.State;
        events.ContinueAfter(state.EventBase);
        AppendPhase(state.Reason);
        if (state.IsTerminal)
            events.Complete();
        else
            StartTicking();
        return Task.CompletedTask;
    }

    public override Task OnDeactivateAsync(DeactivationReason reason, CancellationToken cancellationToken)
    {
        ending.Cancel();
        return Task.CompletedTask;
    }

    public async Task<SubmitResult> Submit(JobSpec spec)
    {
        if (spec.JobId != this.GetPrimaryKeyString())
            return new SubmitResult(false, $"The spec of job '{spec.JobId}' was submitted to '{this.GetPrimaryKeyString()}'.", Status());
        var decision = await Apply(new JobInput.Submitted(spec));
        StartTicking();
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
            var key = (message.Attempt.Attempt, message.Stage, message.Incarnation);
            if (message.Sequence <= lastSequences.GetValueOrDefault(key))
                continue;
            await Take(message);
            lastSequences[key] = message.Sequence;
        }
    }

    public async Task OnMembership(MembershipView next)
    {
        // News may be older than what this silo knows by now: the first views of a start do not hold the silo on which the plan was made a moment later.
        if (devices.View() is var own && own.Version > next.Version)
            next = own;
        if (next.Version <= view.Version || state.Spec is null)
            return;
        bool hasLoss = view.Version < 0 || view.Active.Except(next.Active).Any();
        view = next;
        if (hasLoss)
            looks = new LooksAfter(time.GetTimestamp(), timings.LooksAfterLoss);
        var decision = await Apply(new JobInput.SilosLost(state.Attempt, next.Active));
        if (hasLoss && decision.Verdict is JobVerdict.Repeated)
            await Apply(new JobInput.Reactivated());
    }

    public async Task OnDevicesFree()
    {
        if (state.IsWaiting)
            await Retry();
        // Growing costs a restart, so it waits for a checkpoint (DESIGN D13).
        wantsMoreReplicas = state.Phase is JobPhase.Running && state.Plan?.WorldSize < state.Spec?.WorldSize;
    }

    public Task OnSiloLeaving(string silo) => Apply(new JobInput.Relocation(state.Attempt, silo, $"silo {silo} is leaving: its ranks save and move"));

    public Task OnGrainMoved(int attempt) => attempt == state.Attempt ? Apply(new JobInput.Reactivated()) : Task.CompletedTask;

    public Task OnSnapshotSettled(int attempt, CommittedCheckpoint? checkpoint, string? problem) =>
        Apply(new JobInput.SnapshotSettled(attempt, checkpoint, problem));

    public async Task Tick()
    {
        long now = time.GetTimestamp();
        if (state.IsWaiting && time.GetElapsedTime(retriedAt, now) >= timings.Retry)
            await Retry();
        else if (state.Phase is JobPhase.Recovering && !state.IsCleared && time.GetElapsedTime(phaseSince, now) >= progress.Of(state.Attempt, now).ClearingLimit)
            await Apply(new JobInput.ClearingTimedOut(state.Attempt));
        // A job that may not start again gains nothing from a verdict on its pace.
        else if (state is { Phase: JobPhase.Running, Spec.MaxRestarts: > 0 } && progress.Of(state.Attempt, now).Judge(time, now) is { } stall)
            await Apply(new JobInput.AttemptFaulted(state.Attempt, stall));
        else if ((actions.NeedsAttach || looks.AreDue(time.GetElapsedTime(looks.Since, now))) && !state.IsTerminal)
            await Apply(new JobInput.Reactivated());
        // An abort is lost with the silo of a stage's grain that took it; it is said again until all ranks have ended. So is the search for snapshots.
        else if (state.Phase is JobPhase.Recovering && time.GetElapsedTime(retriedAt, now) >= timings.Retry)
        {
            retriedAt = now;
            await Apply(new JobInput.Reactivated());
        }
    }

    private async Task Retry()
    {
        retriedAt = time.GetTimestamp();
        await Apply(new JobInput.LaunchRetried());
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
        int attempt = message.Attempt.Attempt;
        long now = time.GetTimestamp();
        if (attempt == state.Attempt)
            NoteStage(message, step);
        if (message.Stage != (state.Plan?.NumStages ?? 1) - 1)
            return;
        if (!step.BatchHashesAgree)
        {
            await Apply(new JobInput.AttemptFailed(attempt, FormattableString.Invariant($"The ranks trained on different batches at step {step.Iteration}.")));
            return;
        }
        progress.Of(attempt, now).OnStep(step.StepTime, now);
        var decision = await Apply(new JobInput.StepDone(attempt, step.Iteration));
        if (decision.Verdict is not JobVerdict.Accepted || state is not { Spec: { } spec, Plan: { } plan })
            return;
        GrainLog.StepDone(logger, message.Attempt.JobId, attempt, step.Iteration, step.Loss, step.GradNorm, step.StepTime.TotalMilliseconds);
        ledger.Post(JobLedger.Line(attempt, step, spec.Grid, plan.WorldSize, time.GetUtcNow()));
        Announce(message, (sequence, now) => new JobStepDone(sequence, now, step with { TokensPerExpert = null }));
    }

    private void NoteStage(StageMessage message, StageStepReport step)
    {
        if (step.TokensPerExpert is { } tokens)
            actions.TellExperts(state, step, tokens);
        if (stages.Take(message.Attempt.Attempt, step) is not { } change)
            return;
        if (change.Before is { } before)
            Announce(message, (sequence, now) => new JobStraggler(sequence, now, before.Rank, step.Stage, step.Iteration, null));
        if (change.Now is { } named)
            Announce(message, (sequence, now) => new JobStraggler(sequence, now, named.Rank, step.Stage, step.Iteration, named.Factor));
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
            case RankBusy busy:
                progress.Of(attempt, time.GetTimestamp()).OnBusy(busy.Activity, time.GetTimestamp());
                break;
            case CheckpointCommitted committed:
                await TakeCheckpoint(message, new CommittedCheckpoint(committed.Iteration, committed.Folder));
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

    private async Task TakeCheckpoint(StageMessage message, CommittedCheckpoint checkpoint)
    {
        int attempt = message.Attempt.Attempt;
        if ((await Apply(new JobInput.CheckpointCommitted(attempt, checkpoint))).Verdict is not JobVerdict.Accepted)
            return;
        Announce(message, (sequence, now) => new JobCheckpointSaved(sequence, now, checkpoint));
        if (!wantsMoreReplicas || state.Phase is not JobPhase.Running)
            return;
        wantsMoreReplicas = false;
        if (await actions.FindLargerPlan(state) is { } reason)
            await Apply(new JobInput.Relocation(attempt, null, "devices are free: the job goes on with " + reason));
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
            await Store(decision);
            foreach (var action in decision.Actions)
            {
                if (await actions.Act(state, action) is { } next)
                    pending.Enqueue(next);
            }
            if (!state.IsTerminal)
                continue;
            await actions.Close(state);
            events.Complete();
        }
        return answer ?? throw new InvalidOperationException("the first input was not applied");
    }

    // Stored before anything is done or told (style 21). What ranks can repeat is not worth a write: which of them have started or ended, and the step,
    // for the checkpoint says where a job goes on.
    private async Task Store(JobDecision decision)
    {
        var next = decision.State;
        bool isPhaseChange = next.Phase != state.Phase || next.Attempt != state.Attempt;
        bool isShown = isPhaseChange || next.Reason != state.Reason;
        if (isShown || next.Stop != state.Stop || next.Checkpoint != state.Checkpoint || next.Excluded != state.Excluded)
        {
            next = next with { Revision = state.Revision + 1, EventBase = events.LastSequence + EventGap };
            storage.State = next;
            await storage.WriteStateAsync();
            if (isPhaseChange)
                await actions.NoteInDirectory(next);
        }
        state = next;
        if (!isShown)
            return;
        if (isPhaseChange)
            phaseSince = time.GetTimestamp();
        AppendPhase(decision.Reason);
    }

    private void AppendPhase(string reason)
    {
        GrainLog.PhaseChanged(logger, this.GetPrimaryKeyString(), state.Attempt, state.Phase, reason);
        events.Append(sequence => new JobPhaseChanged(sequence, time.GetUtcNow(), state.Phase, state.Attempt, reason, state.Outcome));
    }

    // Things to tell that move nothing: only of the current attempt of a living job.
    private void Announce(StageMessage message, Func<long, DateTimeOffset, JobEvent> create)
    {
        if (message.Attempt.Attempt == state.Attempt && !state.IsTerminal)
            events.Append(sequence => create(sequence, time.GetUtcNow()));
        else
            numStale++;
    }

    private void StartTicking()
    {
        if (isTicking || state.IsTerminal || state.Spec is null)
            return;
        isTicking = true;
        // Runs beside the turns until the job has ended; it catches all faults itself. Each tick is a turn, because it goes through the reference.
        _ = TickAsync(this.AsReference<IJobControl>());
    }

    private async Task TickAsync(IJobControl self)
    {
        while (!state.IsTerminal && !ending.IsCancellationRequested)
        {
            try
            {
                await Task.Delay(timings.Tick, time, ending.Token);
                await self.Tick();
            }
            catch (OperationCanceledException) when (ending.IsCancellationRequested)
            {
                return;
            }
            catch (Exception fault)
            {
                GrainLog.CallFailed(logger, "tick", fault.Message);
            }
        }
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
        Reason = state.Reason,
        Plan = state.Plan,
        Spec = state.Spec,
        SubmittedAt = state.SubmittedAt,
        EndedAt = state.EndedAt,
        Stages = stages.Rows,
        Activation = activation,
    };

    /// <summary>What is to be done again some times after a loss.</summary>
    private sealed class LooksAfter(long since, ImmutableArray<TimeSpan> delays)
    {
        private int numDone;

        public long Since => since;

        public bool AreDue(TimeSpan passed)
        {
            int due = delays.Count(delay => delay <= passed);
            if (due <= numDone)
                return false;
            numDone = due;
            return true;
        }
    }
}
