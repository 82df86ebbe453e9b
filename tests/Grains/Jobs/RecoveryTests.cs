using Megatron.Compute.Training;
using Megatron.Grains.Checkpoints;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Megatron.Grains.Rendezvous;
using Megatron.Grains.Stages;
using Megatron.Testing;
using Orleans.Core.Internal;

namespace Megatron.Grains.Tests.Jobs;

/// <summary>Jobs on several silos of which one is lost, with fake workers: what is started where, under which attempt, and from what.</summary>
public sealed class RecoveryTests
{
    [Fact]
    public async Task Submit_TwoSilos_StartsRanksOnBothThatMeetThroughTheControlPlane()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        await cluster.Job("a").Submit(Elastic("a", 2));
        var first = await cluster.Worker(0, 0).NextAsync<StartRank>();
        var second = await cluster.Worker(1, 0).NextAsync<StartRank>();
        Assert.Equal((0, 1, 2), (first.Rank, second.Rank, second.WorldSize));
        Assert.Equal("cluster:a/1/node0/0", first.RendezvousEndpoint);
        var silos = (await cluster.Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).GetStatus()).Silos;
        Assert.All(silos, silo => Assert.Equal("a", Assert.Single(silo.Devices).JobId));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task SiloKilled_WhileStartingOrRunning_GoesOnWithOneReplicaFromTheCheckpoint(bool isRunning)
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        await cluster.Job("a").Submit(Elastic("a", 3));
        var starts = await StartsAsync(cluster, 3);
        if (isRunning)
        {
            for (int rank = 0; rank < 3; rank++)
                Run(cluster, starts[rank], 1, 2);
            cluster.Worker(0, 0).Report(new CheckpointCommitted(starts[0].Attempt, 0, "2", 2, "/run/iter_0000002"));
            await cluster.WaitForAsync<JobCheckpointSaved>("a", _ => true);
        }

        await cluster.KillSiloAsync(2);
        await cluster.Worker(0, 0).NextAsync<AbortRank>();
        await cluster.Worker(1, 0).NextAsync<AbortRank>();
        foreach (int node in new[] { 0, 1 })
            cluster.Worker(node, 0).Report(new RankFaulted(starts[node].Attempt, node, "aborted", false, ""));

        var second = await StartsAsync(cluster, 2);
        Assert.All(second, start => Assert.Equal((2, 2, isRunning ? "/run/iter_0000002" : null), (start.Attempt.Attempt, start.WorldSize, start.LoadFolder)));
        foreach (var start in second)
            Run(cluster, start, 3, 3);
        foreach (var start in second)
            cluster.Worker(start.Rank, 0).Report(new RankFinished(start.Attempt, start.Rank, 3, true));
        var status = await cluster.WaitForStatusAsync("a", status => status.Phase is JobPhase.Completed);
        Assert.Equal(2, status.Attempt);
    }

    [Fact]
    public async Task SiloKilled_OneThatHostsNoRank_LeavesTheRanksAlone()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, numSilos: 3);
        foreach (int lost in new[] { 2, 1 })
        {
            string id = $"job{lost}";
            await cluster.Job(id).Submit(Elastic(id, 1));
            var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
            cluster.Worker(0, 0).Report(FakeRankWorker.Started(start));
            await cluster.WaitForAsync<JobPhaseChanged>(id, change => change.Phase is JobPhase.Running);
            await cluster.KillSiloAsync(lost);
            // Whichever grains were lost with it, the rank's next words reach the job.
            cluster.Worker(0, 0).Report(FakeRankWorker.Step(start, 1));
            cluster.Worker(0, 0).Report(new RankFinished(start.Attempt, 0, 1, true));
            Assert.Equal(1, (await cluster.WaitForStatusAsync(id, status => status.Phase is JobPhase.Completed)).Attempt);
        }
    }

    [Fact]
    public async Task SiloKilled_WhileTheLossOfAnotherIsBeingCleared_GoesOnWithWhatIsLeft()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        await cluster.Job("a").Submit(Elastic("a", 3));
        var starts = await StartsAsync(cluster, 3);
        await cluster.KillSiloAsync(2);
        await cluster.Worker(0, 0).NextAsync<AbortRank>();
        await cluster.Worker(1, 0).NextAsync<AbortRank>();
        await cluster.KillSiloAsync(1);
        cluster.Worker(0, 0).Report(new RankFaulted(starts[0].Attempt, 0, "aborted", false, ""));
        var second = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Assert.Equal((2, 1), (second.Attempt.Attempt, second.WorldSize));
    }

    [Fact]
    public async Task SiloKilled_WithTheGrainOfAWaitingJob_TheJobStartsOnceItsDevicesAreFree()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        await cluster.PlaceJobAsync("b", 1);
        await cluster.Job("a").Submit(Elastic("a", 1));
        await cluster.Job("b").Submit(Elastic("b", 2) with { PipelineSize = 2, Layout = null });
        Assert.Equal(JobPhase.Queued, (await PhaseAsync(cluster, "b")).Item1);
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();

        await cluster.KillSiloAsync(1);
        await cluster.AddSiloAsync();
        await WaitForDevicesAsync(cluster, 2);
        cluster.Worker(0, 0).Report(new RankFinished(start.Attempt, 0, 1, true));

        Assert.Equal("b", (await cluster.Worker(0, 0).NextAsync<StartRank>()).Attempt.JobId);
        Assert.Equal("b", (await cluster.Worker(2, 0).NextAsync<StartRank>()).Attempt.JobId);
    }

    [Fact]
    public async Task SiloKilled_WithTheJobsGrainWhileRanksMeet_TheyGoOnMeeting()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        await cluster.PlaceJobAsync("a", 2);
        await cluster.Job("a").Submit(Elastic("a", 2));
        var starts = await StartsAsync(cluster, 2);
        var meeting = cluster.Grains.GetGrain<IRendezvousGrain>(IRendezvousGrain.KeyOf(starts[0].Attempt, "node0/0"));
        Assert.Equal(await cluster.SiloOfAsync(0), (await cluster.Grains.GetGrain<IManagementGrain>(0).GetActivationAddress(meeting))?.ToParsableString());
        await meeting.Set("address/0", [1]);

        await cluster.KillSiloAsync(2);
        foreach (var start in starts)
            Run(cluster, start, 1, 1);

        Assert.Equal(1, (await cluster.WaitForStatusAsync("a", status => status is { Phase: JobPhase.Running, LastIteration: 1 })).Attempt);
        Assert.Equal([1], await meeting.Get("address/0", TimeSpan.Zero));
    }

    [Fact]
    public async Task SiloKilled_WithTheReceiptsOfASave_TheSaveIsCommittedAllTheSame()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        var checkpoints = cluster.Grains.GetGrain<ICheckpointGrain>("a");
        await cluster.PlaceAsync(checkpoints, 2, () => checkpoints.End(new AttemptId("a", 0)));
        await cluster.Job("a").Submit(Elastic("a", 2));
        var starts = await StartsAsync(cluster, 2);
        foreach (var start in starts)
            Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);
        cluster.Worker(0, 0).Report(new CheckpointReceipt(starts[0].Attempt, 0, "1", 1, [], "{}"));
        cluster.Worker(0, 0).Report(FakeRankWorker.Step(starts[0], 2));
        cluster.Worker(1, 0).Report(FakeRankWorker.Step(starts[1], 2));
        // A rank's reports are in order: the receipt has arrived.
        await cluster.WaitForAsync<JobStepDone>("a", done => done.Step.Iteration == 2);

        await cluster.KillSiloAsync(2);
        cluster.Worker(1, 0).Report(new CheckpointReceipt(starts[1].Attempt, 1, "1", 1, [], "{}"));

        Assert.Equal([0, 1], (await cluster.Worker(0, 0).NextAsync<CommitCheckpoint>()).Receipts.Select(receipt => receipt.Rank));
        cluster.Worker(0, 0).Report(new CheckpointCommitted(starts[0].Attempt, 0, "1", 1, "/run/iter_0000001"));
        Assert.Equal(1, (await cluster.WaitForStatusAsync("a", status => status.Checkpoint is not null)).Attempt);
    }

    [Fact]
    public async Task SiloKilled_WhileItLeaves_TheJobGoesOnFromTheCheckpointBefore()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        await cluster.Job("a").Submit(Elastic("a", 2));
        var starts = await StartsAsync(cluster, 2);
        foreach (var start in starts)
            Run(cluster, start, 1, 1);
        cluster.Worker(0, 0).Report(new CheckpointCommitted(starts[0].Attempt, 0, "1", 1, "/run/iter_0000001"));
        await cluster.WaitForAsync<JobCheckpointSaved>("a", _ => true);
        await cluster.Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).OnSiloLeaving(await cluster.SiloOfAsync(1));
        foreach (int node in new[] { 0, 1 })
            Assert.True((await cluster.Worker(node, 0).NextAsync<StopRank>()).SaveCheckpoint);

        await cluster.KillSiloAsync(1);
        await cluster.Worker(0, 0).NextAsync<AbortRank>();
        cluster.Worker(0, 0).Report(new RankFaulted(starts[0].Attempt, 0, "aborted", false, ""));

        foreach (int node in new[] { 0, 2 })
        {
            var next = await cluster.Worker(node, 0).NextAsync<StartRank>();
            Assert.Equal((2, 2, "/run/iter_0000001"), (next.Attempt.Attempt, next.WorldSize, next.LoadFolder));
        }
    }

    // The commit cannot reach rank 0 any more, and what rank 1 says after its receipt must not wait for that.
    [Fact]
    public async Task SiloKilled_WithRank0WhileASaveIsCommitted_TheOthersFaultIsHeard()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        await cluster.PlaceJobAsync("a", 1);
        var checkpoints = cluster.Grains.GetGrain<ICheckpointGrain>("a");
        await cluster.PlaceAsync(checkpoints, 1, () => checkpoints.End(new AttemptId("a", 0)));
        await cluster.Job("a").Submit(Elastic("a", 2));
        var starts = await StartsAsync(cluster, 2);
        foreach (var start in starts)
            Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);
        await checkpoints.AddReceipt(new CheckpointReceipt(starts[0].Attempt, 0, "1", 1, [], "{}"));

        await cluster.KillSiloAsync(0);
        cluster.Worker(1, 0).Report(new CheckpointReceipt(starts[1].Attempt, 1, "1", 1, [], "{}"));
        await cluster.Worker(1, 0).NextAsync<AbortRank>();
        cluster.Worker(1, 0).Report(new RankFaulted(starts[1].Attempt, 1, "rank 0 is lost", false, ""));
        var next = await cluster.Worker(1, 0).NextAsync<StartRank>();
        Assert.Equal((2, 1), (next.Attempt.Attempt, next.WorldSize));
    }

    // Nobody would say that such a rank has ended, and the job would wait for it until it gives its silo up.
    [Fact]
    public async Task Start_ThatIsLostOnItsWayToARank_TheRankCountsAsEndedAndTheNextAttemptStarts()
    {
        int numLost = 0;
        await using var cluster = await TrainingCluster.StartAsync(2, loses: call =>
            call.InterfaceMethod.Name == nameof(IRankGrain.Start) && call.TargetId.Key.ToString() == "node0/1" && Interlocked.Exchange(ref numLost, 1) == 0);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 2, maxRestarts: 1));
        var first = await cluster.Workers[0].NextAsync<StartRank>();
        await cluster.Workers[0].NextAsync<AbortRank>();
        cluster.Workers[0].Report(new RankFaulted(first.Attempt, 0, "aborted", false, ""));
        foreach (int index in new[] { 0, 1 })
            Assert.Equal(2, (await cluster.Workers[index].NextAsync<StartRank>()).Attempt.Attempt);
    }

    [Fact]
    public async Task RankGrain_StartThatComesAfterItsAbort_DoesNothing()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        var rank = cluster.Grains.GetGrain<IRankGrain>("node0/0");
        Assert.False(await rank.Post(new AbortRank(new AttemptId("a", 2), "over")));
        foreach (int attempt in new[] { 2, 1, 3 })
            await rank.Start(new StartRank(new AttemptId("a", attempt), "{}", 0, 1, 0, "cluster:a", null), cluster.Silo, "a/0");
        Assert.Equal(3, (await cluster.Worker(0, 0).NextAsync<StartRank>()).Attempt.Attempt);
    }

    // When a silo is lost, so is what it knew of where the grains of other silos are: they are activated anew.
    [Fact]
    public async Task RankGrain_ActivatedAnewInTheMiddleOfAnAttempt_ForwardsReportsAndCommands()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);
        await DeactivateAsync();
        // Nobody calls the grain but the one that ended.
        cluster.Worker(0, 0).Report(FakeRankWorker.Step(start, 2));
        cluster.Worker(0, 0).Report(FakeRankWorker.Step(start, 3));
        await cluster.WaitForAsync<JobStepDone>("a", done => done.Step.Iteration == 3);
        await DeactivateAsync();
        await cluster.Job("a").Cancel(save: false);
        await cluster.Worker(0, 0).NextAsync<StopRank>();
        cluster.Worker(0, 0).Report(new RankFinished(start.Attempt, 0, 3, false));
        var ended = await cluster.WatchToEndAsync("a");
        Assert.Equal([1L, 2, 3], ended.OfType<JobStepDone>().Select(done => done.Step.Iteration));

        async Task DeactivateAsync() => await cluster.Grains.GetGrain<IRankGrain>("node0/0").AsReference<IGrainManagementExtension>().DeactivateOnIdle();
    }

    // The directory of the grains loses what the silo held a little later than the job loses the silo.
    [Fact]
    public async Task SiloKilled_OneThatHostsNoRank_TheRanksAreAskedAgainSomeTimesLater()
    {
        int numRepeats = 0;
        var repeatedLater = new TaskCompletionSource();
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2, loses: call =>
        {
            if (call.InterfaceMethod.Name == nameof(IRankGrain.Repeat) && Interlocked.Increment(ref numRepeats) == 1 + TrainingCluster.LooksAfterLoss.Length)
                repeatedLater.SetResult();
            return false;
        });
        await cluster.PlaceJobAsync("a", 0);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);
        await cluster.KillSiloAsync(1);
        await repeatedLater.Task.WaitAsync(TimeSpan.FromMinutes(1));
    }

    // A silo that leaves takes its grains away after the job has heard of its leaving.
    [Fact]
    public async Task StageAndCheckpointGrain_ActivatedAnewWithoutALoss_AreToldTheAttempt()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a"));
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);

        await cluster.Grains.GetGrain<IPipelineStageGrain>(IPipelineStageGrain.KeyOf("a", 0)).AsReference<IGrainManagementExtension>().DeactivateOnIdle();
        cluster.Worker(0, 0).Report(FakeRankWorker.Step(start, 2));
        await cluster.WaitForAsync<JobStepDone>("a", done => done.Step.Iteration == 2);

        await cluster.Grains.GetGrain<ICheckpointGrain>("a").AsReference<IGrainManagementExtension>().DeactivateOnIdle();
        cluster.Worker(0, 0).Report(new CheckpointReceipt(start.Attempt, 0, "2", 2, [], "{}"));
        Assert.Equal(2, (await cluster.Worker(0, 0).NextAsync<CommitCheckpoint>()).Iteration);
        Assert.Equal(1, (await cluster.Job("a").GetStatus()).Attempt);
    }

    [Fact]
    public async Task SiloAdded_WhenAJobHasFewerReplicasThanAsked_GrowsAtTheNextCheckpoint()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 1);
        await cluster.Job("a").Submit(Elastic("a", 2));
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Assert.Equal(1, start.WorldSize);
        Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);

        await cluster.AddSiloAsync();
        await WaitForDevicesAsync(cluster, 2);
        Run(cluster, start, 2, 2);
        cluster.Worker(0, 0).Report(new CheckpointCommitted(start.Attempt, 0, "2", 2, "/run/iter_0000002"));
        Assert.True((await cluster.Worker(0, 0).NextAsync<StopRank>()).SaveCheckpoint);
        cluster.Worker(0, 0).Report(new RankFinished(start.Attempt, 0, 2, false));
        var grown = await StartsAsync(cluster, 2);
        Assert.All(grown, next => Assert.Equal((2, 2, "/run/iter_0000002"), (next.Attempt.Attempt, next.WorldSize, next.LoadFolder)));
    }

    [Fact]
    public async Task SiloLeaving_RanksSaveAndMove()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        await cluster.Job("a").Submit(Elastic("a", 1));
        var start = await cluster.Worker(0, 0).NextAsync<StartRank>();
        Run(cluster, start, 1, 1);
        await cluster.WaitForAsync<JobStepDone>("a", _ => true);
        await cluster.Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).OnSiloLeaving(await cluster.SiloOfAsync(0));
        Assert.True((await cluster.Worker(0, 0).NextAsync<StopRank>()).SaveCheckpoint);
        cluster.Worker(0, 0).Report(new CheckpointCommitted(start.Attempt, 0, "1", 1, "/run/iter_0000001"));
        cluster.Worker(0, 0).Report(new RankFinished(start.Attempt, 0, 1, false));
        var next = await cluster.Worker(1, 0).NextAsync<StartRank>();
        Assert.Equal((2, "/run/iter_0000001"), (next.Attempt.Attempt, next.LoadFolder));
    }

    [Fact]
    public async Task Submit_NothingFits_WaitsAndStartsWhenTheOtherJobEnds()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, numSilos: 1);
        await cluster.Job("a").Submit(Elastic("a", 2));
        await cluster.Job("b").Submit(Elastic("b", 2) with { PipelineSize = 2, Layout = null });
        Assert.Equal((JobPhase.Queued, "one replica needs 2 devices, 0 are free: waiting for devices"), await PhaseAsync(cluster, "b"));
        var starts = new[] { await cluster.Workers[0].NextAsync<StartRank>(), await cluster.Workers[1].NextAsync<StartRank>() };
        foreach (var start in starts)
            cluster.Workers[start.LocalRank].Report(new RankFinished(start.Attempt, start.Rank, 1, true));
        Assert.Equal("b", (await cluster.Workers[0].NextAsync<StartRank>()).Attempt.JobId);
        var jobs = await cluster.Grains.GetGrain<IJobDirectory>(IJobDirectory.Key).List();
        Assert.Equal(["a", "b"], jobs.Select(job => job.JobId).Order());
    }

    private static async Task<(JobPhase, string)> PhaseAsync(TrainingCluster cluster, string id)
    {
        var status = await cluster.Job(id).GetStatus();
        return (status.Phase, status.Reason);
    }

    private static JobSpec Elastic(string id, int worldSize) => TrainingCluster.Spec(id, worldSize, maxRestarts: 3, isElastic: true);

    // One device a node: rank n lies on node n.
    private static async Task<StartRank[]> StartsAsync(TrainingCluster cluster, int count)
    {
        var starts = new StartRank[count];
        for (int node = 0; node < count; node++)
            starts[node] = await cluster.Worker(node, 0).NextAsync<StartRank>();
        return starts;
    }

    private static void Run(TrainingCluster cluster, StartRank start, int firstStep, int lastStep)
    {
        var worker = cluster.Worker(start.WorldSize == 1 ? 0 : start.Rank, start.LocalRank);
        worker.Report(FakeRankWorker.Started(start, firstStep));
        for (int step = firstStep; step <= lastStep; step++)
            worker.Report(FakeRankWorker.Step(start, step));
    }

    private static async Task WaitForDevicesAsync(TrainingCluster cluster, int count)
    {
        var membership = cluster.Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key);
        using var patience = new CancellationTokenSource(TimeSpan.FromMinutes(1));
        while ((await membership.GetStatus()).Silos.Sum(silo => silo.Devices.Count) < count)
            await Task.Delay(TimeSpan.FromMilliseconds(20), patience.Token);
    }
}
