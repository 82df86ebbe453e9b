using System.Collections.Immutable;
using System.Globalization;
using Megatron.Grains.Cluster;

namespace Megatron.Grains.Jobs;

/// <summary>
/// The state machine of a job as a pure function: queued → starting → running → (recovering → starting) → completed, failed or cancelled.
/// It decides and does nothing; the job grain stores the result and carries out the actions (DESIGN D9).
/// </summary>
public static class JobTransitions
{
    /// <summary>Exit code of a job that failed for a reason that is not the user's.</summary>
    public const int ExitFailed = 1;

    /// <summary>Exit code of a job that a mistake of the user ended.</summary>
    public const int ExitUserError = 2;

    /// <summary>The next state, what to do, and why.</summary>
    /// <param name="now">Written into the state's times; never compared.</param>
    public static JobDecision Next(JobState state, JobInput input, DateTimeOffset now) => input switch
    {
        JobInput.Submitted submitted => Submit(state, submitted.Spec, now),
        JobInput.CancelRequested cancel => Cancel(state, cancel.Save, now),
        JobInput.LaunchPlanned planned => Launch(state, planned),
        JobInput.LaunchRefused refused when state.Phase is JobPhase.Queued => Fail(state, ExitUserError, refused.Reason, now),
        JobInput.LaunchRefused refused when state.Phase is JobPhase.Recovering => Fail(state, ExitFailed, refused.Reason, now),
        JobInput.LaunchRefused => Stale(state, "no launch was asked for"),
        JobInput.LaunchWaiting waiting => Wait(state, waiting.Reason),
        JobInput.LaunchRetried => state.IsWaiting ? Accept(state, "planned again", new JobAction.PlanLaunch()) : Stale(state, "no launch was asked for"),
        JobInput.Reactivated => Reactivate(state),
        _ => NextInAttempt(state, input, now),
    };

    private static JobDecision NextInAttempt(JobState state, JobInput input, DateTimeOffset now)
    {
        int attempt = input switch
        {
            JobInput.AttemptFailed failed => failed.Attempt,
            JobInput.AttemptFaulted faulted => faulted.Attempt,
            JobInput.SilosLost lost => lost.Attempt,
            JobInput.ClearingTimedOut late => late.Attempt,
            JobInput.SnapshotSettled settled => settled.Attempt,
            JobInput.Relocation relocation => relocation.Attempt,
            JobInput.RankStarted started => started.Attempt,
            JobInput.StepDone step => step.Attempt,
            JobInput.CheckpointCommitted committed => committed.Attempt,
            JobInput.RankFinished finished => finished.Attempt,
            JobInput.RankFaulted faulted => faulted.Attempt,
            _ => throw new ArgumentOutOfRangeException(nameof(input), input.GetType().Name, "unknown input"),
        };
        if (state.Phase is JobPhase.Unknown or JobPhase.Queued || attempt != state.Attempt)
            return Stale(state, Text($"attempt {attempt} is not the current attempt {state.Attempt}"));
        if (state.IsTerminal)
            return Stale(state, Text($"the job has ended: {state.Phase}"));
        return input switch
        {
            JobInput.AttemptFailed failed => Fail(state, ExitFailed, failed.Reason, now, new JobAction.AbortRanks(failed.Reason)),
            JobInput.AttemptFaulted faulted => AttemptFault(state, faulted.Reason, now),
            JobInput.SilosLost lost => LoseSilos(state, lost.Active, now),
            JobInput.ClearingTimedOut => GiveUpClearing(state),
            JobInput.SnapshotSettled settled => SettleSnapshot(state, settled),
            JobInput.Relocation relocation => Relocate(state, relocation),
            JobInput.RankStarted started => Started(state, started, now),
            JobInput.StepDone step => Step(state, step.Iteration),
            JobInput.CheckpointCommitted committed => Committed(state, committed.Checkpoint),
            JobInput.RankFinished finished => Finished(state, finished, now),
            JobInput.RankFaulted faulted => RankFault(state, faulted, now),
            _ => throw new ArgumentOutOfRangeException(nameof(input)),
        };
    }

    private static JobDecision Submit(JobState state, JobSpec spec, DateTimeOffset now)
    {
        if (state.Spec is null)
        {
            var queued = JobState.Empty with { Spec = spec, Phase = JobPhase.Queued, SubmittedAt = now };
            return Accept(queued, "submitted", new JobAction.PlanLaunch());
        }
        return state.Spec == spec
            ? new JobDecision(JobVerdict.Repeated, state, [], "this job is known already")
            : new JobDecision(JobVerdict.Refused, state, [], $"Another job was submitted under the id '{spec.JobId}'; choose another id.");
    }

    private static JobDecision Cancel(JobState state, bool save, DateTimeOffset now)
    {
        if (state.Phase is JobPhase.Unknown)
            return new JobDecision(JobVerdict.Refused, state, [], "No job was submitted under this id.");
        if (state.IsTerminal)
            return Stale(state, Text($"the job has ended: {state.Phase}"));
        if (state.Phase is JobPhase.Queued or JobPhase.Recovering)
            return End(state, JobPhase.Cancelled, 0, "cancelled before the ranks were started", now);
        if (state.Stop is StopIntent.Relocate && save)
            return Accept(state with { Stop = StopIntent.Save }, "the ranks are saving already; the job ends after that");
        if (state.Stop is StopIntent.None)
        {
            var stop = save ? StopIntent.Save : StopIntent.Discard;
            string reason = save ? "stop after this step and save" : "stop after this step";
            return Accept(state with { Stop = stop }, reason, new JobAction.StopRanks(save, reason));
        }
        if (save || state.Stop is StopIntent.Abort)
            return new JobDecision(JobVerdict.Repeated, state, [], "the job is stopping already");
        return Accept(state with { Stop = StopIntent.Abort }, "asked again: stop at once", new JobAction.AbortRanks("asked again: stop at once"));
    }

    private static JobDecision Launch(JobState state, JobInput.LaunchPlanned planned)
    {
        if (state.Phase is not (JobPhase.Queued or JobPhase.Recovering))
            return Stale(state, "no launch was asked for");
        var starting = state with
        {
            Phase = JobPhase.Starting,
            Attempt = state.Attempt + 1,
            Plan = planned.Plan,
            StartedRanks = [],
            EndedRanks = [],
            DataPlanHash = null,
            ReachedEnd = true,
            HasLostSilo = false,
            Stop = StopIntent.None,
            // A new attempt repeats the steps done since the checkpoint it starts from.
            LastIteration = state.Checkpoint?.Iteration ?? 0,
        };
        string from = state.Attempt == 0 ? ""
            : state.Checkpoint is { } checkpoint ? Text($"; goes on from {checkpoint.Source ?? Text($"step {checkpoint.Iteration}")} ({checkpoint.Folder})")
            : "; begins again, no checkpoint was committed";
        return Accept(starting with { Reason = planned.Reason + from }, planned.Reason + from, new JobAction.StartRanks(state.Checkpoint?.Folder));
    }

    private static JobDecision Wait(JobState state, string reason)
    {
        if (!state.IsWaiting)
            return Stale(state, "no launch was asked for");
        return state.Reason == reason ? new JobDecision(JobVerdict.Repeated, state, [], reason) : Accept(state with { Reason = reason }, reason);
    }

    // Every action may have been cut short by the loss of the silo that carried it out; each can be repeated.
    private static JobDecision Reactivate(JobState state) => state.Phase switch
    {
        JobPhase.Queued => Accept(state, state.Reason, new JobAction.PlanLaunch()),
        JobPhase.Starting => Accept(state, state.Reason, [new JobAction.StartRanks(state.Checkpoint?.Folder, IsRepeated: true), .. StopsAgain(state)]),
        JobPhase.Running => Accept(state, state.Reason, [new JobAction.AttachRanks(), .. StopsAgain(state)]),
        JobPhase.Recovering when state.AwaitsSnapshot => Accept(state, state.Reason, new JobAction.RestoreSnapshot()),
        JobPhase.Recovering => Accept(state, state.Reason, new JobAction.AttachRanks(), new JobAction.AbortRanks("the attempt is being cleared")),
        _ => Stale(state, "there is nothing to take up"),
    };

    private static JobAction[] StopsAgain(JobState state) => state.Stop switch
    {
        StopIntent.None => [],
        StopIntent.Abort => [new JobAction.AbortRanks(state.Reason)],
        _ => [new JobAction.StopRanks(state.Stop is not StopIntent.Discard, state.Reason, IsRepeated: true)],
    };

    private static JobDecision Started(JobState state, JobInput.RankStarted started, DateTimeOffset now)
    {
        if (state.Phase is not JobPhase.Starting || state.StartedRanks.Contains(started.Rank))
            return new JobDecision(JobVerdict.Repeated, state, [], Text($"rank {started.Rank} has started already"));
        if (state.DataPlanHash is { } hash && hash != started.DataPlanHash)
        {
            return Fail(state, ExitFailed, Text(
                $"Rank {started.Rank} planned other data than the ranks before it (plan {started.DataPlanHash:x16}, theirs {hash:x16}); make sure that all nodes see the same files."),
                now, new JobAction.AbortRanks("data plans differ"));
        }
        var next = state with
        {
            StartedRanks = state.StartedRanks.Add(started.Rank),
            DataPlanHash = started.DataPlanHash,
            FirstIteration = started.FirstIteration,
            LastIteration = Math.Max(state.LastIteration, started.FirstIteration - 1),
        };
        return next.StartedRanks.Count == WorldSize(state)
            ? Accept(next with { Phase = JobPhase.Running }, Text($"all {WorldSize(state)} ranks run"))
            : Accept(next, Text($"rank {started.Rank} has started"));
    }

    private static JobDecision Step(JobState state, long iteration)
    {
        if (state.Phase is not (JobPhase.Starting or JobPhase.Running))
            return Stale(state, "the attempt is being cleared");
        return iteration <= state.LastIteration
            ? new JobDecision(JobVerdict.Repeated, state, [], Text($"step {iteration} is known"))
            : Accept(state with { LastIteration = iteration }, Text($"step {iteration}"));
    }

    private static JobDecision Committed(JobState state, CommittedCheckpoint checkpoint) => checkpoint == state.Checkpoint
        ? new JobDecision(JobVerdict.Repeated, state, [], "this checkpoint is known")
        : Accept(state with { Checkpoint = checkpoint, NumFutileRestarts = 0 }, Text($"checkpoint of step {checkpoint.Iteration} committed"));

    private static JobDecision Finished(JobState state, JobInput.RankFinished finished, DateTimeOffset now)
    {
        if (state.EndedRanks.Contains(finished.Rank))
            return new JobDecision(JobVerdict.Repeated, state, [], Text($"rank {finished.Rank} has ended already"));
        // The steps done are counted by the step reports alone: those of a slower rank may still be on their way when the first rank ends.
        var next = state with { EndedRanks = state.EndedRanks.Add(finished.Rank), ReachedEnd = state.ReachedEnd && finished.Completed };
        if (next.EndedRanks.Count < WorldSize(state))
            return Accept(next, Text($"rank {finished.Rank} has ended"));
        if (state.Phase is JobPhase.Recovering)
            return Accept(next, "the old attempt is cleared", AfterClearing(next));
        if (next.ReachedEnd)
            return End(next, JobPhase.Completed, 0, Text($"training is done after step {next.LastIteration}"), now);
        return state.Stop switch
        {
            StopIntent.None => Fail(next, ExitFailed, Text($"Rank {finished.Rank} ended after step {finished.LastIteration} without being asked to."), now),
            StopIntent.Save => EndSaved(next, now),
            StopIntent.Relocate => Moved(next with { Phase = JobPhase.Recovering, Reason = "the ranks have saved and ended" }),
            _ => End(next, JobPhase.Cancelled, 0, Text($"stopped after step {next.LastIteration} without saving"), now),
        };
    }

    private static JobDecision Moved(JobState state) => Accept(state, state.Reason, AfterClearing(state));

    private static JobDecision EndSaved(JobState state, DateTimeOffset now)
    {
        bool nothingToSave = state.LastIteration < state.FirstIteration;
        if (nothingToSave)
            return End(state, JobPhase.Cancelled, 0, "stopped before the first step; there was nothing to save", now);
        return state.Checkpoint is { } saved && saved.Iteration == state.LastIteration
            ? End(state, JobPhase.Cancelled, 0, Text($"stopped after step {state.LastIteration}; the checkpoint is {saved.Folder}"), now)
            : Fail(state, ExitFailed, Text($"Stopped after step {state.LastIteration}, but its checkpoint was not saved."), now);
    }

    private static JobDecision RankFault(JobState state, JobInput.RankFaulted faulted, DateTimeOffset now)
    {
        if (state.EndedRanks.Contains(faulted.Rank))
            return new JobDecision(JobVerdict.Repeated, state, [], Text($"rank {faulted.Rank} has ended already"));
        var next = state with { EndedRanks = state.EndedRanks.Add(faulted.Rank), ReachedEnd = false };
        if (faulted.IsUserError)
            return Fail(next, ExitUserError, faulted.Message, now, AbortOthers(next, faulted.Message));
        return Fault(next, Text($"Rank {faulted.Rank}: {faulted.Message}"), now);
    }

    private static JobDecision AttemptFault(JobState state, string reason, DateTimeOffset now) => state.Phase is JobPhase.Recovering
        ? new JobDecision(JobVerdict.Repeated, state, [], "the attempt is being cleared already")
        : Fault(state, reason, now);

    // The ranks of a lost silo have ended, whatever they did last; the others must be cleared.
    private static JobDecision LoseSilos(JobState state, IReadOnlyCollection<string> active, DateTimeOffset now)
    {
        var lost = (state.Plan?.Ranks ?? []).Where(rank => !active.Contains(rank.Silo) && !state.EndedRanks.Contains(rank.Rank)).ToList();
        if (lost.Count == 0)
            return new JobDecision(JobVerdict.Repeated, state, [], "every silo of the attempt is there");
        var next = state with
        {
            EndedRanks = state.EndedRanks.Union(lost.Select(rank => rank.Rank)),
            Excluded = [.. state.Excluded.Where(device => active.Contains(device.Silo)), .. lost.Select(rank => new ClusterDevice(rank.Device, rank.Silo))],
            ReachedEnd = false,
            HasLostSilo = true,
            NumFutileRestarts = state is { Phase: JobPhase.Recovering, HasLostSilo: false } ? Math.Max(0, state.NumFutileRestarts - 1) : state.NumFutileRestarts,
        };
        string silos = string.Join(", ", lost.GroupBy(rank => (rank.Device.Node, rank.Silo))
            .Select(silo => Text($"{silo.Key.Node} ({silo.Key.Silo}) with {(silo.Count() == 1 ? "rank" : "ranks")} {string.Join(", ", silo.Select(rank => rank.Rank))}")));
        var decision = Fault(next, $"lost silo {silos}", now);
        // A stage's grain may have been lost with the silo: an abort reaches the ranks, and their last words the job, only when it is there again.
        return decision.Actions.Any(action => action is JobAction.AbortRanks) ? decision with { Actions = decision.Actions.Insert(0, new JobAction.AttachRanks()) } : decision;
    }

    private static JobDecision GiveUpClearing(JobState state)
    {
        if (state.Phase is not JobPhase.Recovering || state.IsCleared)
            return Stale(state, "no rank is being waited for");
        var stuck = (state.Plan?.Ranks ?? []).Where(rank => !state.EndedRanks.Contains(rank.Rank)).ToList();
        var next = state with
        {
            EndedRanks = state.EndedRanks.Union(stuck.Select(rank => rank.Rank)),
            Excluded = state.Excluded.AddRange(stuck.Select(rank => new ClusterDevice(rank.Device, rank.Silo))),
        };
        string reason = Text($"ranks {string.Join(", ", stuck.Select(rank => rank.Rank))} did not end in time; their devices ({string.Join(", ", stuck.Select(rank => rank.Device.GrainKey))}) are left out until their silo has restarted");
        return Accept(next with { Reason = reason }, reason, new JobAction.RestartSilos([.. stuck.Select(rank => rank.Silo).Distinct(StringComparer.Ordinal)], reason), AfterClearing(next));
    }

    // A snapshot that was written is a checkpoint like any other; one that cannot be used is told, because it costs steps.
    private static JobDecision SettleSnapshot(JobState state, JobInput.SnapshotSettled settled)
    {
        if (!state.AwaitsSnapshot)
            return Stale(state, "no snapshot was looked for");
        var next = state with { SettledAttempt = state.Attempt };
        if (settled.Checkpoint is { } restored)
            next = next with { Checkpoint = restored, NumFutileRestarts = 0, Reason = $"{restored.Source} is on disk" };
        else if (settled.Problem is { } problem)
            next = next with { Reason = problem };
        return Accept(next, next.Reason, new JobAction.PlanLaunch());
    }

    // Once no rank of the old attempt can change them any more.
    private static JobAction AfterClearing(JobState state) => state.AwaitsSnapshot ? new JobAction.RestoreSnapshot() : new JobAction.PlanLaunch();

    private static JobDecision Relocate(JobState state, JobInput.Relocation relocation)
    {
        if (state.Phase is JobPhase.Recovering)
            return Stale(state, "the attempt is being cleared");
        var leaving = (state.Plan?.Ranks ?? []).Where(rank => rank.Silo == relocation.LeavingSilo).Select(rank => new ClusterDevice(rank.Device, rank.Silo)).ToList();
        if (relocation.LeavingSilo is not null && leaving.Count == 0)
            return new JobDecision(JobVerdict.Repeated, state, [], "no rank runs on that silo");
        var next = state with { Excluded = [.. state.Excluded.Union(leaving)] };
        if (state.Stop is not StopIntent.None)
            return Accept(next, "the ranks are stopping already");
        return Accept(next with { Stop = StopIntent.Relocate, Reason = relocation.Reason }, relocation.Reason, new JobAction.StopRanks(true, relocation.Reason));
    }

    // An operating fault: start again when a restart is left and nobody wants the job to stop, else fail.
    private static JobDecision Fault(JobState state, string reason, DateTimeOffset now)
    {
        bool cleared = state.EndedRanks.Count == WorldSize(state);
        if (state.Phase is JobPhase.Recovering)
        {
            return cleared
                ? Accept(state, "the old attempt is cleared", AfterClearing(state))
                : Accept(state, reason);
        }
        if (state.Stop is StopIntent.Abort)
        {
            return cleared
                ? End(state, JobPhase.Cancelled, 0, Text($"aborted after step {state.LastIteration} without saving"), now)
                : Accept(state, reason);
        }
        int maxRestarts = state.Spec?.MaxRestarts ?? 0;
        bool mayRestart = state.HasLostSilo ? maxRestarts > 0 : state.NumFutileRestarts < maxRestarts;
        if (state.Stop is not (StopIntent.None or StopIntent.Relocate) || !mayRestart)
            return Fail(state, ExitFailed, reason, now, AbortOthers(state, reason));
        var recovering = state with { Phase = JobPhase.Recovering, Reason = reason, NumFutileRestarts = state.NumFutileRestarts + (state.HasLostSilo ? 0 : 1) };
        ImmutableArray<JobAction> actions = cleared ? [AfterClearing(recovering)] : AbortOthers(state, reason);
        return new JobDecision(JobVerdict.Accepted, recovering, actions, reason);
    }

    private static ImmutableArray<JobAction> AbortOthers(JobState state, string reason) =>
        state.EndedRanks.Count == WorldSize(state) ? [] : [new JobAction.AbortRanks(reason)];

    private static JobDecision Fail(JobState state, int exitCode, string message, DateTimeOffset now, params ImmutableArray<JobAction> actions) =>
        End(state, JobPhase.Failed, exitCode, message, now) with { Actions = actions };

    private static JobDecision End(JobState state, JobPhase phase, int exitCode, string message, DateTimeOffset now) =>
        Accept(state with { Phase = phase, Reason = message, Outcome = new JobOutcome(exitCode, message), EndedAt = now }, message);

    private static JobDecision Accept(JobState state, string reason, params ImmutableArray<JobAction> actions) =>
        new(JobVerdict.Accepted, state, actions, reason);

    private static JobDecision Stale(JobState state, string reason) => new(JobVerdict.Stale, state, [], reason);

    private static int WorldSize(JobState state) => state.Plan?.WorldSize ?? state.Spec?.WorldSize ?? 0;

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
