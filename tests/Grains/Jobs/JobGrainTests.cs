using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Megatron.Testing;

namespace Megatron.Grains.Tests.Jobs;

/// <summary>Jobs on a real silo with fake workers: the whole way of a command and of a report.</summary>
public sealed class JobGrainTests
{
    [Fact]
    public async Task Submit_TwoRanks_RunsToTheEndWithOneEventPerStep()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, FakeRankWorker.TrainToEnd(12));
        var answer = await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        Assert.True(answer.Accepted);

        var seen = await cluster.WatchToEndAsync("a");

        Assert.Equal(
            [JobPhase.Queued, JobPhase.Starting, JobPhase.Running, JobPhase.Completed], seen.OfType<JobPhaseChanged>().Select(change => change.Phase));
        Assert.Equal(Enumerable.Range(1, seen.Count).Select(index => (long)index), seen.Select(item => item.Sequence));
        var steps = seen.OfType<JobStepDone>().Select(done => done.Step).ToList();
        Assert.Equal(Enumerable.Range(1, 12).Select(index => (long)index), steps.Select(step => step.Iteration));
        Assert.All(steps, step => Assert.Equal(20, step.TokenCount));
        Assert.All(steps, step => Assert.Equal(1.0 / step.Iteration, step.Loss, 1e-12));
        Assert.Equal(12, Assert.Single(seen.OfType<JobPlanned>()).Plan.TrainIterations);
        Assert.Equal(0, seen.OfType<JobPhaseChanged>().Last().Outcome?.ExitCode);
        Assert.Equal(JobPhase.Completed, (await cluster.Job("a").GetStatus()).Phase);
    }

    [Fact]
    public async Task Submit_SameSpecTwice_IsOneJob()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        var spec = TrainingCluster.Spec("a");
        var answers = await Task.WhenAll(cluster.Job("a").Submit(spec), cluster.Job("a").Submit(spec));
        Assert.All(answers, answer => Assert.True(answer.Accepted));
        await cluster.Workers[0].NextAsync<StartRank>();
        Assert.True(cluster.Workers[0].HasNoCommand);
        Assert.Equal(1, (await cluster.Job("a").GetStatus()).Attempt);
    }

    [Fact]
    public async Task Submit_OtherSpecUnderTheSameId_IsRefused()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var answer = await cluster.Job("a").Submit(TrainingCluster.Spec("a") with { ConfigJson = "{\"lr\":1}" });
        Assert.False(answer.Accepted);
        Assert.Contains("another id", answer.Message, StringComparison.Ordinal);
        await cluster.Workers[0].NextAsync<StartRank>();
        Assert.True(cluster.Workers[0].HasNoCommand);
    }

    [Fact]
    public async Task Submit_MoreRanksThanDevices_FailsAsTheUsersMistake()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        var answer = await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        Assert.Equal(JobPhase.Failed, answer.Status.Phase);
        Assert.Equal(JobTransitions.ExitUserError, answer.Status.Outcome?.ExitCode);
    }

    [Fact]
    public async Task Watch_AfterTheEnd_ReplaysFromTheSequenceAskedForAndEnds()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, FakeRankWorker.TrainToEnd(3));
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var first = await cluster.WatchToEndAsync("a");
        var again = await cluster.WatchToEndAsync("a");
        var tail = await cluster.WatchToEndAsync("a", first.Count - 1);
        Assert.Equal(first, again);
        Assert.Equal(first.TakeLast(2), tail);
        Assert.Empty(await cluster.WatchToEndAsync("nobody"));
    }

    [Fact]
    public async Task RankFaulted_UsersMistake_FailsWithExitCode2AndAbortsTheOthers()
    {
        await using var cluster = await TrainingCluster.StartAsync(2);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        var starts = await StartsAsync(cluster, 2);
        cluster.Workers[1].Report(new RankFaulted(starts[1].Attempt, 1, "DATA003 row 7 has no messages; remove it.", IsUserError: true, "detail"));
        var seen = await cluster.WatchToEndAsync("a");
        var outcome = seen.OfType<JobPhaseChanged>().Last().Outcome;
        Assert.Equal(new JobOutcome(2, "DATA003 row 7 has no messages; remove it."), outcome);
        await cluster.Workers[0].NextAsync<AbortRank>();
    }

    [Fact]
    public async Task RankFaulted_WithARestartLeft_StartsANewAttemptFromTheCheckpointAndIgnoresTheOldOne()
    {
        await using var cluster = await TrainingCluster.StartAsync(2);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2, maxRestarts: 1));
        var starts = await StartsAsync(cluster, 2);
        foreach (var start in starts)
        {
            cluster.Workers[start.Rank].Report(FakeRankWorker.Started(start));
            cluster.Workers[start.Rank].Report(FakeRankWorker.Step(start, 1));
        }
        cluster.Workers[0].Report(new CheckpointCommitted(starts[0].Attempt, 0, "s1", 1, "/run/iter_0000001"));
        await cluster.WaitForAsync<JobCheckpointSaved>("a", _ => true);

        cluster.Workers[1].Report(new RankFaulted(starts[1].Attempt, 1, "the peer is gone", IsUserError: false, "detail"));
        await cluster.Workers[0].NextAsync<AbortRank>();
        await cluster.Workers[1].NextAsync<AbortRank>();
        Assert.Equal(JobPhase.Recovering, (await cluster.Job("a").GetStatus()).Phase);
        cluster.Workers[0].Report(new RankFinished(starts[0].Attempt, 0, 1, Completed: false));

        var second = await StartsAsync(cluster, 2);
        Assert.All(second, start => Assert.Equal(2, start.Attempt.Attempt));
        Assert.All(second, start => Assert.Equal("/run/iter_0000001", start.LoadFolder));
        Assert.All(second, start => Assert.Contains("/2/", start.RendezvousEndpoint, StringComparison.Ordinal));

        // What the first attempt still says is stale, also a fault; a late command of it does not reach the worker.
        cluster.Workers[0].Report(new RankFaulted(starts[0].Attempt, 0, "late", IsUserError: false, "detail"));
        await cluster.Grains.GetGrain<IRankGrain>("node0/0").Post(new AbortRank(starts[0].Attempt, "late"));
        await cluster.Grains.GetGrain<IRankGrain>("node0/0").Start(starts[0], cluster.Silo, "a/0");
        Assert.True(cluster.Workers[0].HasNoCommand);
        foreach (var start in second)
        {
            cluster.Workers[start.Rank].Report(FakeRankWorker.Started(start, firstIteration: 2));
            cluster.Workers[start.Rank].Report(FakeRankWorker.Step(start, 2));
            cluster.Workers[start.Rank].Report(new RankFinished(start.Attempt, start.Rank, 2, Completed: true));
        }
        var seen = await cluster.WatchToEndAsync("a");
        Assert.Equal([1L, 2L], seen.OfType<JobStepDone>().Select(done => done.Step.Iteration));
        Assert.Equal(JobPhase.Completed, seen.OfType<JobPhaseChanged>().Last().Phase);
    }

    [Fact]
    public async Task Cancel_WithSave_CommitsAfterAllReceiptsAndEndsWithExitCode0()
    {
        await using var cluster = await TrainingCluster.StartAsync(2);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        var starts = await StartsAsync(cluster, 2);
        foreach (var start in starts)
        {
            cluster.Workers[start.Rank].Report(FakeRankWorker.Started(start));
            cluster.Workers[start.Rank].Report(FakeRankWorker.Step(start, 1));
        }
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);

        await cluster.Job("a").Cancel(save: true);
        Assert.True((await cluster.Workers[0].NextAsync<StopRank>()).SaveCheckpoint);
        Assert.True((await cluster.Workers[1].NextAsync<StopRank>()).SaveCheckpoint);
        cluster.Workers[1].Report(Receipt(starts[1]));
        cluster.Workers[1].Report(new RankFinished(starts[1].Attempt, 1, 1, Completed: false));
        cluster.Workers[0].Report(Receipt(starts[0]));
        var commit = await cluster.Workers[0].NextAsync<CommitCheckpoint>();
        Assert.Equal([0, 1], commit.Receipts.Select(receipt => receipt.Rank));
        Assert.Equal(new CheckpointFile("state/rank-1.safetensors", 12, "00ff"), commit.Receipts[1].Files[0]);
        cluster.Workers[0].Report(new CheckpointCommitted(starts[0].Attempt, 0, "s1", 1, "/run/iter_0000001"));
        cluster.Workers[0].Report(new RankFinished(starts[0].Attempt, 0, 1, Completed: false));

        var seen = await cluster.WatchToEndAsync("a");
        Assert.Equal(new CommittedCheckpoint(1, "/run/iter_0000001"), Assert.Single(seen.OfType<JobCheckpointSaved>()).Checkpoint);
        var last = seen.OfType<JobPhaseChanged>().Last();
        Assert.Equal((JobPhase.Cancelled, 0), (last.Phase, last.Outcome?.ExitCode));
    }

    [Fact]
    public async Task Cancel_Twice_AbortsAtOnce()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var start = await cluster.Workers[0].NextAsync<StartRank>();
        cluster.Workers[0].Report(FakeRankWorker.Started(start));
        await cluster.WaitForAsync<JobPhaseChanged>("a", change => change.Phase is JobPhase.Running);
        await cluster.Job("a").Cancel(save: true);
        await cluster.Workers[0].NextAsync<StopRank>();
        await cluster.Job("a").Cancel(save: false);
        await cluster.Workers[0].NextAsync<AbortRank>();
        cluster.Workers[0].Report(new RankFinished(start.Attempt, 0, 0, Completed: false));
        var seen = await cluster.WatchToEndAsync("a");
        Assert.Equal(JobPhase.Cancelled, seen.OfType<JobPhaseChanged>().Last().Phase);
    }

    [Fact]
    public async Task Pipeline_TwoStages_TakesTheLossOfTheLastStage()
    {
        await using var cluster = await TrainingCluster.StartAsync(4, FakeRankWorker.TrainToEnd(2));
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 4, pipelineSize: 2));
        var seen = await cluster.WatchToEndAsync("a");
        var steps = seen.OfType<JobStepDone>().Select(done => done.Step).ToList();
        Assert.Equal([(1, 1L), (1, 2L)], steps.Select(step => (step.Stage, step.Iteration)));
        Assert.All(steps, step => Assert.Equal(20, step.TokenCount));
    }

    [Theory]
    [InlineData(1, null, null, "0-3|4-7", "1f1b", PipelineScheduleKind.OneForwardOneBackward)]
    [InlineData(2, null, null, "0-1, 4-5|2-3, 6-7", "auto", PipelineScheduleKind.Auto)]
    [InlineData(1, 3, null, "0-2|3-7", "zero_bubble", PipelineScheduleKind.ZeroBubble)]
    [InlineData(2, null, 2, "0-2, 4-6|3-3, 7-7", "interleaved", PipelineScheduleKind.Interleaved)]
    public async Task Pipeline_EachStage_HandsItsLayersAndTheScheduleToItsRanks(
        int numChunks, int? first, int? last, string layers, string schedule, PipelineScheduleKind kind)
    {
        await using var cluster = await TrainingCluster.StartAsync(4);
        var config = new TrainingConfig
        {
            PipelineModelParallelSize = 2, VirtualPipelineModelParallelSize = numChunks, DecoderFirstPipelineNumLayers = first,
            DecoderLastPipelineNumLayers = last, PipelineSchedule = schedule, GlobalBatchSize = 8, MicroBatchSize = 1,
        };
        var spec = TrainingCluster.Spec("a", worldSize: 4, pipelineSize: 2) with { Layout = JobLayout.Of(config, TestModels.Config with { NumLayers = 8 }) };
        await cluster.Job("a").Submit(spec);
        var starts = await StartsAsync(cluster, 4);
        Assert.Equal(layers, $"{starts[0].Work?.Layers}|{starts[2].Work?.Layers}");
        Assert.Equal((starts[0].Work, starts[2].Work), (starts[1].Work, starts[3].Work));
        Assert.All(starts, start => Assert.Equal(kind, start.Work?.Schedule));
        Assert.Equal([(true, false), (false, true)], new[] { starts[0], starts[2] }.Select(start => (start.Work?.Chunks[0].HasEmbedding == true, start.Work?.Chunks[^1].HasHead == true)));
        Assert.Equal("this job is known already", (await cluster.Job("a").Submit(spec with { Layout = JobLayout.Of(config, TestModels.Config with { NumLayers = 8 }) })).Message);
    }

    [Fact]
    public async Task Batches_ThatDifferBetweenRanks_FailTheJob()
    {
        await using var cluster = await TrainingCluster.StartAsync(2);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        foreach (var start in await StartsAsync(cluster, 2))
        {
            cluster.Workers[start.Rank].Report(FakeRankWorker.Started(start));
            cluster.Workers[start.Rank].Report(FakeRankWorker.Step(start, 1) with { BatchHash = (ulong)start.Rank });
        }
        var last = (await cluster.WatchToEndAsync("a")).OfType<JobPhaseChanged>().Last();
        Assert.Equal((JobPhase.Failed, 1), (last.Phase, last.Outcome?.ExitCode));
        Assert.Contains("different batches", last.Outcome?.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Submit_WhenAnotherJobHasTheDevice_FailsTheSecondJob()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var answer = await cluster.Job("b").Submit(TrainingCluster.Spec("b"));
        Assert.Equal(JobPhase.Failed, answer.Status.Phase);
        Assert.Contains("there are 0 free devices", answer.Status.Outcome?.Message, StringComparison.Ordinal);
        Assert.Equal(JobPhase.Starting, (await cluster.Job("a").GetStatus()).Phase);
    }

    [Fact]
    public async Task Reports_FromThreadsOfTheirOwn_ArriveOnceAndInOrder()
    {
        const int numRanks = 4;
        const int numSteps = 1500;
        await using var cluster = await TrainingCluster.StartAsync(numRanks);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: numRanks));
        var starts = await StartsAsync(cluster, numRanks);
        var threads = starts.Select(start => new Thread(() =>
        {
            var worker = cluster.Workers[start.Rank];
            worker.Report(FakeRankWorker.Started(start));
            for (int iteration = 1; iteration <= numSteps; iteration++)
                worker.Report(FakeRankWorker.Step(start, iteration));
            worker.Report(new RankFinished(start.Attempt, start.Rank, numSteps, Completed: true));
        })).ToList();
        threads.ForEach(thread => thread.Start());
        var seen = await cluster.WatchToEndAsync("a");
        threads.ForEach(thread => thread.Join());
        var steps = seen.OfType<JobStepDone>().Select(done => done.Step).ToList();
        Assert.Equal(Enumerable.Range(1, numSteps).Select(index => (long)index), steps.Select(step => step.Iteration));
        Assert.All(steps, step => Assert.Equal(10.0 * numRanks, step.TokenCount));
        Assert.Equal(0, (await cluster.Job("a").GetStatus()).NumStaleMessages);
    }

    [Fact]
    public async Task State_AfterTheGrainWasDropped_IsReadFromStorageAndWatchEnds()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, FakeRankWorker.TrainToEnd(3));
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2));
        await cluster.WatchToEndAsync("a");
        var before = await cluster.Job("a").GetStatus();

        await cluster.Grains.GetGrain<IManagementGrain>(0).ForceActivationCollection(TimeSpan.Zero);

        var after = await cluster.Job("a").GetStatus();
        Assert.Equal((before.Phase, before.Attempt, before.LastIteration, before.Outcome), (after.Phase, after.Attempt, after.LastIteration, after.Outcome));
        var replay = await cluster.WatchToEndAsync("a");
        Assert.Equal([0L], replay.OfType<JobEventsSkipped>().Select(skipped => skipped.NumSkipped));
        Assert.Equal(before.Outcome, Assert.Single(replay.OfType<JobPhaseChanged>()).Outcome);
        Assert.True(replay[^1].Sequence > before.LastIteration + 1_000_000);
        Assert.Equal("this job is known already", (await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2))).Message);
    }

    [Fact]
    public async Task Steps_WithASlowRank_AreShownByStageAndTellItOnce()
    {
        await using var cluster = await TrainingCluster.StartAsync(4, (_, command) => command is StartRank start
            ?
            [
                FakeRankWorker.Started(start),
                .. Enumerable.Range(1, 40).Select(step => FakeRankWorker.Step(start, step) with { ComputeTime = TimeSpan.FromMilliseconds(start.Rank == 3 && step is > 10 and < 25 ? 100 : 50) }),
                new RankFinished(start.Attempt, start.Rank, 40, Completed: true),
            ]
            : []);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 4, pipelineSize: 2));
        var told = (await cluster.WatchToEndAsync("a")).OfType<JobStraggler>().ToList();
        Assert.Equal([(3, 1, true), (3, 1, false)], told.Select(item => (item.Rank, item.Stage, item.Factor is not null)));
        Assert.InRange(told[0].Iteration, 11, 20);
        var stages = (await cluster.Job("a").GetStatus()).Stages;
        Assert.Equal([(0, 2, 40L), (1, 2, 40L)], stages.Select(stage => (stage.Stage, stage.NumRanks, stage.Iteration)));
    }

    [Fact]
    public async Task Watch_AtItsEnd_NothingOfTheJobIsUnderWay()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, FakeRankWorker.TrainToEnd(1));
        for (int i = 0; i < 20; i++)
        {
            string id = FormattableString.Invariant($"job{i}");
            await cluster.Job(id).Submit(TrainingCluster.Spec(id, worldSize: 2));
            await cluster.WatchToEndAsync(id);
            Assert.Empty((await cluster.Grains.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key).GetState()).Reservations);
            Assert.Equal(JobPhase.Completed, (await cluster.Grains.GetGrain<IJobDirectory>(IJobDirectory.Key).List()).Single(job => job.JobId == id).Phase);
        }
    }

    private static async Task<List<StartRank>> StartsAsync(TrainingCluster cluster, int worldSize)
    {
        List<StartRank> starts = [];
        for (int rank = 0; rank < worldSize; rank++)
            starts.Add(await cluster.Workers[rank].NextAsync<StartRank>());
        return starts;
    }

    private static CheckpointReceipt Receipt(StartRank start) => new(start.Attempt, start.Rank, "s1", 1,
        [new CheckpointFile(FormattableString.Invariant($"state/rank-{start.Rank}.safetensors"), 12, "00ff")], "{}");
}
