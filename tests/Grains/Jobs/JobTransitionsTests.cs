using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

/// <summary>Every transition of a job and every message that must not move it, without a grain.</summary>
public sealed class JobTransitionsTests
{
    private static readonly DateTimeOffset now = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);

    [Fact]
    public void Submit_NewJob_IsQueuedAndPlanned()
    {
        var decision = Next(JobState.Empty, new JobInput.Submitted(Spec()));
        Assert.Equal(JobPhase.Queued, decision.State.Phase);
        Assert.Equal(now, decision.State.SubmittedAt);
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(decision.Actions));
    }

    [Fact]
    public void Submit_KnownJob_RepeatsOrRefuses()
    {
        Assert.Equal(JobVerdict.Repeated, Next(Running(), new JobInput.Submitted(Spec())).Verdict);
        var other = Next(Running(), new JobInput.Submitted(Spec() with { WorldSize = 4 }));
        Assert.Equal(JobVerdict.Refused, other.Verdict);
        Assert.Contains("'job'", other.Reason, StringComparison.Ordinal);
    }

    [Fact]
    public void Launch_Planned_StartsAttempt1()
    {
        var decision = Next(Queued(), new JobInput.LaunchPlanned(Plan(), "fits"));
        Assert.Equal((JobPhase.Starting, 1), (decision.State.Phase, decision.State.Attempt));
        Assert.Equal(new JobAction.StartRanks(null), Assert.Single(decision.Actions));
    }

    [Fact]
    public void Launch_Refused_FailsAsTheUsersMistakeAtFirstAndAsAFaultLater()
    {
        Assert.Equal(2, Next(Queued(), new JobInput.LaunchRefused("too few devices")).State.Outcome?.ExitCode);
        Assert.Equal(1, Next(Recovering(), new JobInput.LaunchRefused("too few devices")).State.Outcome?.ExitCode);
        Assert.Equal(JobVerdict.Stale, Next(Running(), new JobInput.LaunchRefused("late")).Verdict);
        Assert.Equal(JobVerdict.Stale, Next(Running(), new JobInput.LaunchPlanned(Plan(), "late")).Verdict);
    }

    [Fact]
    public void RankStarted_LastOfAll_MakesTheJobRun()
    {
        var one = Next(Starting(), new JobInput.RankStarted(1, 1, 5, 77));
        Assert.Equal(JobPhase.Starting, one.State.Phase);
        Assert.Equal(JobVerdict.Repeated, Next(one.State, new JobInput.RankStarted(1, 1, 5, 77)).Verdict);
        var both = Next(one.State, new JobInput.RankStarted(1, 0, 5, 77));
        Assert.Equal(JobPhase.Running, both.State.Phase);
        Assert.Equal((5L, 4L), (both.State.FirstIteration, both.State.LastIteration));
    }

    [Fact]
    public void RankStarted_OtherDataPlan_FailsAndAborts()
    {
        var one = Next(Starting(), new JobInput.RankStarted(1, 0, 1, 77)).State;
        var decision = Next(one, new JobInput.RankStarted(1, 1, 1, 78));
        Assert.Equal((JobPhase.Failed, 1), (decision.State.Phase, decision.State.Outcome?.ExitCode));
        Assert.IsType<JobAction.AbortRanks>(Assert.Single(decision.Actions));
    }

    [Fact]
    public void StepDone_OnlyRises()
    {
        var three = Next(Running(), new JobInput.StepDone(1, 3)).State;
        Assert.Equal(3, three.LastIteration);
        Assert.Equal(JobVerdict.Repeated, Next(three, new JobInput.StepDone(1, 3)).Verdict);
        Assert.Equal(JobVerdict.Stale, Next(Recovering(), new JobInput.StepDone(1, 4)).Verdict);
    }

    [Fact]
    public void CheckpointCommitted_IsKeptOnce()
    {
        var checkpoint = new CommittedCheckpoint(3, "/iter_0000003");
        var saved = Next(Running(), new JobInput.CheckpointCommitted(1, checkpoint));
        Assert.Equal(checkpoint, saved.State.Checkpoint);
        Assert.Equal(JobVerdict.Repeated, Next(saved.State, new JobInput.CheckpointCommitted(1, checkpoint)).Verdict);
    }

    [Fact]
    public void RankFinished_AllAtTheEnd_CompletesWithExitCode0()
    {
        var one = Next(Running(), new JobInput.RankFinished(1, 0, 9, true));
        Assert.Equal(JobPhase.Running, one.State.Phase);
        Assert.Equal(JobVerdict.Repeated, Next(one.State, new JobInput.RankFinished(1, 0, 9, true)).Verdict);
        var both = Next(one.State, new JobInput.RankFinished(1, 1, 9, true));
        Assert.Equal((JobPhase.Completed, 0, now), (both.State.Phase, both.State.Outcome?.ExitCode, both.State.EndedAt));
    }

    [Fact]
    public void RankFinished_BeforeTheEndUnasked_Fails()
    {
        var ended = EndAll(Running());
        Assert.Equal((JobPhase.Failed, 1), (ended.Phase, ended.Outcome?.ExitCode));
    }

    [Theory]
    [InlineData(0, null, JobPhase.Cancelled, 0)]
    [InlineData(4, 4L, JobPhase.Cancelled, 0)]
    [InlineData(4, 2L, JobPhase.Failed, 1)]
    [InlineData(4, null, JobPhase.Failed, 1)]
    public void RankFinished_AfterStopAndSave_IsWellOnlyWhenSaved(long lastIteration, long? savedIteration, JobPhase phase, int exitCode)
    {
        var stopping = Next(Running(), new JobInput.CancelRequested(true)).State with
        {
            LastIteration = lastIteration,
            Checkpoint = savedIteration is { } iteration ? new CommittedCheckpoint(iteration, "/iter") : null,
        };
        var ended = EndAll(stopping);
        Assert.Equal((phase, exitCode), (ended.Phase, ended.Outcome?.ExitCode));
    }

    [Fact]
    public void Cancel_InEachPhase()
    {
        Assert.Equal(JobVerdict.Refused, Next(JobState.Empty, new JobInput.CancelRequested(true)).Verdict);
        Assert.Equal(JobPhase.Cancelled, Next(Queued(), new JobInput.CancelRequested(true)).State.Phase);
        Assert.Equal(JobPhase.Cancelled, Next(Recovering(), new JobInput.CancelRequested(true)).State.Phase);
        var ended = Next(Queued(), new JobInput.CancelRequested(true)).State;
        Assert.Equal(JobVerdict.Stale, Next(ended, new JobInput.CancelRequested(true)).Verdict);
        foreach (var state in new[] { Starting(), Running() })
        {
            var saving = Next(state, new JobInput.CancelRequested(true));
            Assert.Equal((StopIntent.Save, state.Phase), (saving.State.Stop, saving.State.Phase));
            Assert.True(Assert.IsType<JobAction.StopRanks>(Assert.Single(saving.Actions)).SaveCheckpoint);
            Assert.Equal(JobVerdict.Repeated, Next(saving.State, new JobInput.CancelRequested(true)).Verdict);
            var abort = Next(saving.State, new JobInput.CancelRequested(false));
            Assert.IsType<JobAction.AbortRanks>(Assert.Single(abort.Actions));
            Assert.Equal(JobVerdict.Repeated, Next(abort.State, new JobInput.CancelRequested(false)).Verdict);
            Assert.Equal((JobPhase.Cancelled, 0), (EndAll(abort.State).Phase, EndAll(abort.State).Outcome?.ExitCode));
        }
        var discarding = Next(Running(), new JobInput.CancelRequested(false));
        Assert.False(Assert.IsType<JobAction.StopRanks>(Assert.Single(discarding.Actions)).SaveCheckpoint);
        Assert.Equal(JobPhase.Cancelled, EndAll(discarding.State).Phase);
    }

    [Fact]
    public void RankFaulted_UsersMistake_IsNeverRetried()
    {
        var decision = Next(Running(maxRestarts: 3), new JobInput.RankFaulted(1, 0, "bad row", true));
        Assert.Equal(new JobOutcome(2, "bad row"), decision.State.Outcome);
        Assert.IsType<JobAction.AbortRanks>(Assert.Single(decision.Actions));
    }

    [Fact]
    public void RankFaulted_NoRestartLeft_Fails()
    {
        var decision = Next(Running(), new JobInput.RankFaulted(1, 1, "peer gone", false));
        Assert.Equal(new JobOutcome(1, "Rank 1: peer gone"), decision.State.Outcome);
    }

    [Fact]
    public void RankFaulted_RestartLeft_WaitsUntilAllRanksEndedThenPlansAndStartsFromTheCheckpoint()
    {
        var state = Next(Running(maxRestarts: 1), new JobInput.CheckpointCommitted(1, new CommittedCheckpoint(4, "/iter_4"))).State;
        state = Next(state, new JobInput.StepDone(1, 6)).State;
        var fault = Next(state, new JobInput.RankFaulted(1, 1, "peer gone", false));
        Assert.Equal(JobPhase.Recovering, fault.State.Phase);
        Assert.IsType<JobAction.AbortRanks>(Assert.Single(fault.Actions));
        Assert.Equal(JobVerdict.Repeated, Next(fault.State, new JobInput.RankFaulted(1, 1, "again", false)).Verdict);
        foreach (var end in new JobInput[] { new JobInput.RankFinished(1, 0, 6, false), new JobInput.RankFaulted(1, 0, "aborted", false) })
        {
            var cleared = Next(fault.State, end);
            Assert.IsType<JobAction.PlanLaunch>(Assert.Single(cleared.Actions));
            var second = Next(cleared.State, new JobInput.LaunchPlanned(Plan(), "fits"));
            Assert.Equal(new JobAction.StartRanks("/iter_4"), Assert.Single(second.Actions));
            Assert.Equal((2, 4L), (second.State.Attempt, second.State.LastIteration));
            Assert.Empty(second.State.StartedRanks);
            var again = Next(second.State, new JobInput.RankFaulted(2, 0, "peer gone", false));
            Assert.Equal(JobPhase.Failed, again.State.Phase);
        }
    }

    [Fact]
    public void RankFaulted_WhileStopping_IsNotRetried()
    {
        var stopping = Next(Running(maxRestarts: 5), new JobInput.CancelRequested(true)).State;
        Assert.Equal(JobPhase.Failed, Next(stopping, new JobInput.RankFaulted(1, 0, "disk full", false)).State.Phase);
    }

    [Fact]
    public void AttemptFailed_FailsAndAborts()
    {
        var decision = Next(Starting(), new JobInput.AttemptFailed(1, "no silo"));
        Assert.Equal((JobPhase.Failed, 1), (decision.State.Phase, decision.State.Outcome?.ExitCode));
        Assert.IsType<JobAction.AbortRanks>(Assert.Single(decision.Actions));
    }

    [Fact]
    public void EveryMessageOfAnotherAttemptOrAfterTheEnd_IsStaleAndChangesNothing()
    {
        var running = Running() with { Attempt = 2 };
        var completed = running with { Phase = JobPhase.Completed };
        foreach (int attempt in new[] { 1, 2, 3 })
        {
            foreach (var input in AttemptInputs(attempt))
            {
                if (attempt != 2)
                    AssertStale(running, input);
                AssertStale(completed, input);
                AssertStale(Queued(), input);
                AssertStale(JobState.Empty, input);
            }
        }
    }

    private static IEnumerable<JobInput> AttemptInputs(int attempt) =>
    [
        new JobInput.AttemptFailed(attempt, "x"), new JobInput.RankStarted(attempt, 0, 1, 7), new JobInput.StepDone(attempt, 1),
        new JobInput.CheckpointCommitted(attempt, new CommittedCheckpoint(1, "/x")), new JobInput.RankFinished(attempt, 0, 1, true),
        new JobInput.RankFaulted(attempt, 0, "x", false), new JobInput.RankFaulted(attempt, 0, "x", true),
    ];

    private static void AssertStale(JobState state, JobInput input)
    {
        var decision = Next(state, input);
        Assert.Equal(JobVerdict.Stale, decision.Verdict);
        Assert.Same(state, decision.State);
        Assert.Empty(decision.Actions);
    }

    private static JobDecision Next(JobState state, JobInput input) => JobTransitions.Next(state, input, now);

    private static JobState EndAll(JobState state)
    {
        var one = Next(state, new JobInput.RankFinished(state.Attempt, 0, state.LastIteration, false)).State;
        return Next(one, new JobInput.RankFinished(state.Attempt, 1, state.LastIteration, false)).State;
    }

    private static JobSpec Spec(int maxRestarts = 0) => TrainingCluster.Spec("job", worldSize: 2, maxRestarts: maxRestarts);

    private static LaunchPlan Plan() => new(
        [new RankPlacement(0, 0, new DeviceId("n", 0), "s"), new RankPlacement(1, 0, new DeviceId("n", 1), "s")], 1, "local:job");

    private static JobState Queued(int maxRestarts = 0) => Next(JobState.Empty, new JobInput.Submitted(Spec(maxRestarts))).State;

    private static JobState Starting(int maxRestarts = 0) => Next(Queued(maxRestarts), new JobInput.LaunchPlanned(Plan(), "fits")).State;

    private static JobState Running(int maxRestarts = 0)
    {
        var one = Next(Starting(maxRestarts), new JobInput.RankStarted(1, 0, 1, 7)).State;
        return Next(one, new JobInput.RankStarted(1, 1, 1, 7)).State;
    }

    private static JobState Recovering() => Next(Running(maxRestarts: 1), new JobInput.RankFaulted(1, 0, "gone", false)).State;
}
