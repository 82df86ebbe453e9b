using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Testing;

namespace Megatron.Grains.Tests.Snapshots;

/// <summary>A silo is lost while the others hold snapshots: what the next attempt starts from, and what the job says. Workers and holders are fakes.</summary>
public sealed class SnapshotRecoveryTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    // A job whose own silo is lost knows the step it had reached from the ledger.
    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    public async Task SiloKilled_OthersHoldASnapshot_GoesOnFromIt(int nodeOfJob)
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        await cluster.PlaceJobAsync("a", nodeOfJob);
        var starts = await StartAsync(cluster, 3);
        Assert.All(starts, start => Assert.Equal([1, 2, 0], start.SnapshotPartners));
        // Node 1 holds the copies of rank 0, and of step 7 not those of itself: it was on its way.
        cluster.Snapshots(0).Holdings = [new(1, 6, 3, [0, 2]), new(1, 7, 3, [0, 2])];
        cluster.Snapshots(1).Holdings = [new(1, 6, 3, [0, 1]), new(1, 7, 3, [0, 1])];
        await LoseNode2Async(cluster, starts);

        var next = await NextStartsAsync(cluster, 2);
        Assert.All(next, start => Assert.Equal((2, 2, "/run/iter_0000007"), (start.Attempt.Attempt, start.WorldSize, start.LoadFolder)));
        var status = await cluster.Job("a").GetStatus();
        Assert.EndsWith("; goes on from the snapshot of step 7 held by node0, node1 (/run/iter_0000007)", status.Reason, StringComparison.Ordinal);
        Assert.Equal(("[0 2]", "[1]"), (Written(cluster, 0), Written(cluster, 1)));
        Assert.Equal((2, 1, "0 2 1"), Assert.Single(cluster.Snapshots(0).Committed.Select(item => (item.Order.Attempt.Attempt, item.Order.FromAttempt, string.Join(' ', item.Ranks)))));
        await WaitForDiscardsAsync(cluster, 2);
    }

    [Fact]
    public async Task SiloKilled_NothingWholeIsLeft_GoesOnFromTheCheckpointAndSaysWhy()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        var starts = await StartAsync(cluster, 3);
        cluster.Worker(0, 0).Report(new CheckpointCommitted(starts[0].Attempt, 0, "2", 2, "/run/iter_0000002"));
        await cluster.WaitForAsync<JobCheckpointSaved>("a", _ => true);
        cluster.Snapshots(0).Holdings = [new(1, 7, 3, [0])];
        await LoseNode2Async(cluster, starts);

        Assert.All(await NextStartsAsync(cluster, 2), start => Assert.Equal("/run/iter_0000002", start.LoadFolder));
        await cluster.WaitForAsync<JobPhaseChanged>(
            "a", change => change is { Phase: JobPhase.Recovering, Reason: "the snapshot of step 7 is not whole: both copies of ranks 1, 2 are lost" });
        Assert.Empty(cluster.Snapshots(0).Written);
    }

    [Fact]
    public async Task SiloKilled_SnapshotCannotBeWritten_GoesOnFromTheCheckpointAndSaysWhy()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        var starts = await StartAsync(cluster, 3);
        cluster.Snapshots(0).Holdings = [new(1, 7, 3, [0, 1, 2])];
        cluster.Snapshots(0).WriteFault = new IOException("the disk is full");
        await LoseNode2Async(cluster, starts);

        Assert.All(await NextStartsAsync(cluster, 2), start => Assert.Null(start.LoadFolder));
        await cluster.WaitForAsync<JobPhaseChanged>(
            "a", change => change.Reason == "the snapshot of step 7 held by node0 could not be written: the disk is full");
        Assert.Empty(cluster.Snapshots(0).Committed);
    }

    [Fact]
    public async Task JobEnded_EverySiloForgetsItsSnapshots()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        var starts = await StartAsync(cluster, 2);
        foreach (var start in starts)
            cluster.Worker(start.Rank, 0).Report(new RankFinished(start.Attempt, start.Rank, 3, true));
        await cluster.WaitForStatusAsync("a", status => status.Phase is JobPhase.Completed);
        await WaitForDiscardsAsync(cluster, int.MaxValue);
    }

    private static Task WaitForDiscardsAsync(TrainingCluster cluster, int attempt) =>
        WaitUntilAsync(() => Task.FromResult(cluster.Snapshots(0).Discards.Contains(attempt) && cluster.Snapshots(1).Discards.Contains(attempt)));

    private static async Task WaitUntilAsync(Func<Task<bool>> holds)
    {
        using var patience = new CancellationTokenSource(TimeSpan.FromMinutes(1));
        while (!await holds())
            await Task.Delay(TimeSpan.FromMilliseconds(20), patience.Token);
    }

    private static string Written(TrainingCluster cluster, int node) => string.Concat(cluster.Snapshots(node).Written.Select(order => $"[{string.Join(' ', order.Ranks)}]"));

    // One device a node: rank n lies on node n.
    private async Task<StartRank[]> StartAsync(TrainingCluster cluster, int count)
    {
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", count, maxRestarts: 3, isElastic: true) with { TakesSnapshots = true, OutputFolder = folder.Root });
        var starts = await NextStartsAsync(cluster, count);
        foreach (var start in starts)
        {
            cluster.Worker(start.Rank, 0).Report(FakeRankWorker.Started(start));
            for (int step = 1; step <= 7; step++)
                cluster.Worker(start.Rank, 0).Report(FakeRankWorker.Step(start, step));
        }
        await cluster.WaitForAsync<JobStepDone>("a", done => done.Step.Iteration == 7);
        await WaitUntilAsync(async () => await JobLedger.ReadLastStepAsync(folder.Root) == 7);
        return starts;
    }

    private static async Task<StartRank[]> NextStartsAsync(TrainingCluster cluster, int count)
    {
        var starts = new StartRank[count];
        for (int node = 0; node < count; node++)
            starts[node] = await cluster.Worker(node, 0).NextAsync<StartRank>();
        return starts;
    }

    private static async Task LoseNode2Async(TrainingCluster cluster, StartRank[] starts)
    {
        await cluster.KillSiloAsync(2);
        foreach (int node in (int[])[0, 1])
        {
            await cluster.Worker(node, 0).NextAsync<AbortRank>();
            cluster.Worker(node, 0).Report(new RankFaulted(starts[node].Attempt, node, "aborted", false, ""));
        }
    }
}
