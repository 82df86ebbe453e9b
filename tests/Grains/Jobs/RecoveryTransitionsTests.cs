using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

/// <summary>What the loss, the leaving and the return of silos do to a job, without a grain.</summary>
public sealed class RecoveryTransitionsTests
{
    private static readonly DateTimeOffset now = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);

    [Fact]
    public void SilosLost_OneOfTwo_ClearsTheOtherAndExcludesTheDevice()
    {
        var lost = Next(Running(), new JobInput.SilosLost(1, ["s0"]));
        Assert.Equal(JobPhase.Recovering, lost.State.Phase);
        Assert.Equal([1], lost.State.EndedRanks);
        Assert.Equal([new ClusterDevice(new DeviceId("n1", 0), "s1")], lost.State.Excluded);
        Assert.Equal("lost silo n1 (s1) with rank 1", lost.Reason);
        Assert.Equal([typeof(JobAction.AttachRanks), typeof(JobAction.AbortRanks)], lost.Actions.Select(action => action.GetType()));
        var cleared = Next(lost.State, new JobInput.RankFaulted(1, 0, "aborted", false));
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(cleared.Actions));
    }

    [Fact]
    public void Cleared_WithSnapshots_SettlesThemBeforeAnythingIsPlanned()
    {
        var running = Running() is var state && state.Spec is { } spec ? state with { Spec = spec with { TakesSnapshots = true } } : state;
        var cleared = Next(Next(running, new JobInput.SilosLost(1, ["s0"])).State, new JobInput.RankFaulted(1, 0, "aborted", false));
        Assert.IsType<JobAction.RestoreSnapshot>(Assert.Single(cleared.Actions));
        Assert.False(cleared.State.IsWaiting);
        Assert.Equal(JobVerdict.Stale, Next(cleared.State, new JobInput.LaunchRetried()).Verdict);
        Assert.Equal(JobVerdict.Stale, Next(cleared.State, new JobInput.ClearingTimedOut(1)).Verdict);
        Assert.IsType<JobAction.RestoreSnapshot>(Assert.Single(Next(cleared.State, new JobInput.Reactivated()).Actions));

        var restored = new CommittedCheckpoint(7, "/run/iter_0000007") { Source = "the snapshot of step 7 held by n0" };
        var settled = Next(cleared.State, new JobInput.SnapshotSettled(1, restored, null));
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(settled.Actions));
        Assert.Equal(JobVerdict.Stale, Next(settled.State, new JobInput.SnapshotSettled(1, null, null)).Verdict);
        var started = Next(settled.State, new JobInput.LaunchPlanned(Plan(), "fits"));
        Assert.Equal(new JobAction.StartRanks("/run/iter_0000007"), Assert.Single(started.Actions));
        Assert.Equal((7, "fits; goes on from the snapshot of step 7 held by n0 (/run/iter_0000007)"), (started.State.LastIteration, started.Reason));
    }

    [Fact]
    public void SilosLost_NobodyOfTheJob_IsNoNews()
    {
        var same = Next(Running(), new JobInput.SilosLost(1, ["s0", "s1", "s9"]));
        Assert.Equal(JobVerdict.Repeated, same.Verdict);
    }

    [Fact]
    public void SilosLost_AfterThePeersFault_GivesTheRestartBack()
    {
        var state = Running(maxRestarts: 1);
        var fault = Next(state, new JobInput.RankFaulted(1, 0, "rank 1 closed the connection", false)).State;
        Assert.Equal(1, fault.NumFutileRestarts);
        var lost = Next(fault, new JobInput.SilosLost(1, ["s0"]));
        Assert.Equal(0, lost.State.NumFutileRestarts);
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(lost.Actions));
    }

    [Fact]
    public void SilosLost_AgainAndAgain_NeverUsesUpTheRestarts()
    {
        var state = Running(maxRestarts: 1);
        for (int attempt = 1; attempt <= 20; attempt++)
        {
            state = Next(state, new JobInput.SilosLost(attempt, [])).State;
            Assert.Equal(JobPhase.Recovering, state.Phase);
            state = Next(state, new JobInput.LaunchPlanned(Plan(), "fits")).State;
            Assert.Equal((JobPhase.Starting, attempt + 1), (state.Phase, state.Attempt));
        }
    }

    [Fact]
    public void RankFaulted_CommittedInBetween_StartsTheCountOfRestartsAnew()
    {
        var state = Running(maxRestarts: 1);
        for (int attempt = 1; attempt <= 5; attempt++)
        {
            state = Next(state, new JobInput.CheckpointCommitted(attempt, new CommittedCheckpoint(attempt, $"/iter_{attempt}"))).State;
            state = Next(state, new JobInput.RankFaulted(attempt, 0, "x", false)).State;
            state = Next(state, new JobInput.RankFaulted(attempt, 1, "x", false)).State;
            state = Next(state, new JobInput.LaunchPlanned(Plan(), "fits")).State;
        }
        Assert.Equal(6, state.Attempt);
        Assert.Equal(JobPhase.Failed, Next(state, new JobInput.RankFaulted(6, 0, "x", false)).State.Phase);
    }

    [Fact]
    public void ClearingTimedOut_LeavesTheStuckRankBehindAndRestartsItsSilo()
    {
        var fault = Next(Running(), new JobInput.RankFaulted(1, 0, "x", false)).State;
        var late = Next(fault, new JobInput.ClearingTimedOut(1));
        Assert.Equal(["s1"], Assert.IsType<JobAction.RestartSilos>(late.Actions[0]).Silos);
        Assert.IsType<JobAction.PlanLaunch>(late.Actions[1]);
        Assert.Contains(new ClusterDevice(new DeviceId("n1", 0), "s1"), late.State.Excluded);
        Assert.Equal(JobVerdict.Stale, Next(late.State, new JobInput.ClearingTimedOut(1)).Verdict);
        Assert.Equal(JobVerdict.Stale, Next(Running(), new JobInput.ClearingTimedOut(1)).Verdict);
    }

    [Fact]
    public void LaunchWaiting_KeepsTheReasonAndAsksAgain()
    {
        var queued = Next(JobState.Empty, new JobInput.Submitted(Spec(1))).State;
        var waiting = Next(queued, new JobInput.LaunchWaiting("no devices"));
        Assert.Equal((JobPhase.Queued, "no devices"), (waiting.State.Phase, waiting.State.Reason));
        Assert.Equal(JobVerdict.Repeated, Next(waiting.State, new JobInput.LaunchWaiting("no devices")).Verdict);
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(Next(waiting.State, new JobInput.LaunchRetried()).Actions));
        Assert.Equal(JobVerdict.Stale, Next(Running(), new JobInput.LaunchRetried()).Verdict);
        Assert.Equal(JobVerdict.Stale, Next(Running(), new JobInput.LaunchWaiting("late")).Verdict);
    }

    [Fact]
    public void Relocation_SavesEndsAndPlansAgain_AndACancelMeanwhileWins()
    {
        var moving = Next(Running(), new JobInput.Relocation(1, "s1", "s1 leaves"));
        Assert.True(Assert.IsType<JobAction.StopRanks>(Assert.Single(moving.Actions)).SaveCheckpoint);
        Assert.Equal(StopIntent.Relocate, moving.State.Stop);
        var ended = EndAll(moving.State);
        Assert.Equal(JobPhase.Recovering, ended.State.Phase);
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(ended.Actions));
        Assert.Equal(StopIntent.None, Next(ended.State, new JobInput.LaunchPlanned(Plan(), "fits")).State.Stop);

        var cancelled = Next(moving.State, new JobInput.CancelRequested(true));
        Assert.Empty(cancelled.Actions);
        Assert.True(EndAll(cancelled.State).State.IsTerminal);
        Assert.Equal(JobVerdict.Repeated, Next(Running(), new JobInput.Relocation(1, "elsewhere", "leaves")).Verdict);
        Assert.Equal(JobPhase.Recovering, Next(moving.State, new JobInput.RankFaulted(1, 0, "x", false)).State.Phase);
    }

    [Fact]
    public void Reactivated_RepeatsWhatMayHaveBeenCutShort()
    {
        var queued = Next(JobState.Empty, new JobInput.Submitted(Spec(1))).State;
        var starting = Next(queued, new JobInput.LaunchPlanned(Plan(), "fits")).State;
        Assert.IsType<JobAction.PlanLaunch>(Assert.Single(Next(queued, new JobInput.Reactivated()).Actions));
        Assert.Equal(new JobAction.StartRanks(null, IsRepeated: true), Assert.Single(Next(starting, new JobInput.Reactivated()).Actions));
        Assert.IsType<JobAction.AttachRanks>(Assert.Single(Next(Running(), new JobInput.Reactivated()).Actions));
        Assert.Equal(JobVerdict.Stale, Next(EndAll(Running()).State, new JobInput.Reactivated()).Verdict);
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(false, false)]
    public void Reactivated_WhileStopping_AsksTheRanksAgain(bool save, bool saves)
    {
        var stopping = Next(Running(), new JobInput.CancelRequested(save)).State;
        var actions = Next(stopping, new JobInput.Reactivated()).Actions;
        Assert.IsType<JobAction.AttachRanks>(actions[0]);
        Assert.Equal(saves, Assert.IsType<JobAction.StopRanks>(actions[1]).SaveCheckpoint);
        var aborting = Next(stopping, new JobInput.CancelRequested(false)).State;
        Assert.IsType<JobAction.AbortRanks>(Next(aborting, new JobInput.Reactivated()).Actions[1]);
        var moving = Next(Running(), new JobInput.Relocation(1, "s1", "silo s1 is leaving")).State;
        Assert.Equal(new JobAction.StopRanks(true, "silo s1 is leaving", IsRepeated: true), Next(moving, new JobInput.Reactivated()).Actions[1]);
    }

    [Fact]
    public void ProgressWatch_JudgesByItsOwnMeanAndSparesSavesAndEvaluations()
    {
        var time = new Megatron.Testing.ManualTime();
        var watch = new ProgressWatch(new JobTimings(), time.GetTimestamp());
        for (int step = 0; step < 10; step++)
        {
            time.Advance(TimeSpan.FromSeconds(2));
            watch.OnStep(TimeSpan.FromSeconds(2), time.GetTimestamp());
        }
        time.Advance(TimeSpan.FromSeconds(5.4));
        Assert.Null(watch.Judge(time, time.GetTimestamp()));
        time.Advance(TimeSpan.FromSeconds(0.2));
        Assert.Equal("no rank has finished a step for 5.6 s (mean step 2.00 s, limit 5.5 s)", watch.Judge(time, time.GetTimestamp()));
        watch.OnBusy("the checkpoint", time.GetTimestamp());
        time.Advance(TimeSpan.FromMinutes(29));
        Assert.Null(watch.Judge(time, time.GetTimestamp()));
        watch.OnBusy(null, time.GetTimestamp());
        time.Advance(TimeSpan.FromSeconds(5.4));
        Assert.Null(watch.Judge(time, time.GetTimestamp()));
        time.Advance(TimeSpan.FromSeconds(0.2));
        Assert.NotNull(watch.Judge(time, time.GetTimestamp()));
    }

    [Fact]
    public void ProgressWatch_BeforeTheMeanIsKnown_AllowsTheFirstStepsHalfAnHour()
    {
        var time = new Megatron.Testing.ManualTime();
        var watch = new ProgressWatch(new JobTimings(), time.GetTimestamp());
        for (int step = 0; step < 2; step++)
        {
            time.Advance(TimeSpan.FromMinutes(29));
            Assert.Null(watch.Judge(time, time.GetTimestamp()));
            watch.OnStep(TimeSpan.FromSeconds(2), time.GetTimestamp());
        }
        time.Advance(TimeSpan.FromMinutes(31));
        Assert.NotNull(watch.Judge(time, time.GetTimestamp()));
    }

    private static JobDecision Next(JobState state, JobInput input) => JobTransitions.Next(state, input, now);

    private static JobDecision EndAll(JobState state)
    {
        var one = Next(state, new JobInput.RankFinished(state.Attempt, 0, state.LastIteration, false)).State;
        return Next(one, new JobInput.RankFinished(state.Attempt, 1, state.LastIteration, false));
    }

    private static JobSpec Spec(int maxRestarts) => TrainingCluster.Spec("job", worldSize: 2, maxRestarts: maxRestarts, isElastic: true);

    private static LaunchPlan Plan() => new(
        [new RankPlacement(0, 0, new DeviceId("n0", 0), "s0"), new RankPlacement(1, 0, new DeviceId("n1", 0), "s1")], 1, "cluster:");

    private static JobState Running(int maxRestarts = 3)
    {
        var queued = Next(JobState.Empty, new JobInput.Submitted(Spec(maxRestarts))).State;
        var state = Next(queued, new JobInput.LaunchPlanned(Plan(), "fits")).State;
        state = Next(state, new JobInput.RankStarted(1, 0, 1, 7)).State;
        return Next(state, new JobInput.RankStarted(1, 1, 1, 7)).State;
    }
}
