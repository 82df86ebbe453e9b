using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Jobs;
using Megatron.Grains.Snapshots;

namespace Megatron.Grains.Tests.Snapshots;

public sealed class SnapshotPlannerTests
{
    [Theory]
    [InlineData("a", "0")]
    [InlineData("a,a,a", "0,1,2")]
    [InlineData("a,b", "1,0")]
    [InlineData("a,a,b,b", "2,3,0,1")]
    [InlineData("a,b,a,b", "1,0,3,2")]
    [InlineData("a,b,c", "1,2,0")]
    [InlineData("a,a,a,b", "3,3,3,0")]
    public void Partners_AreTheSamePlaceOnTheNextNode(string nodes, string partners) =>
        Assert.Equal(partners, string.Join(',', SnapshotPlanner.Partners(Plan(nodes.Split(',')))));

    [Fact]
    public void Partners_OfRandomPlans_LieOnAnotherNodeAndEveryLossOfOneNodeIsCovered()
    {
        int seed = Random.Shared.Next();
        var random = new Random(seed);
        for (int i = 0; i < 200; i++)
        {
            string[] nodes = [.. Enumerable.Range(0, random.Next(2, 20)).Select(_ => $"n{random.Next(5)}")];
            if (nodes.Distinct().Count() == 1)
                continue;
            var partners = SnapshotPlanner.Partners(Plan(nodes));
            Assert.All(Enumerable.Range(0, nodes.Length), rank => Assert.True(nodes[rank] != nodes[partners[rank]], $"seed {seed}: {string.Join(',', nodes)}"));
            string lost = nodes[random.Next(nodes.Length)];
            var holders = nodes.Distinct().Where(node => node != lost).Select(node => Holder(
                node, (1, 7, nodes.Length, [.. Enumerable.Range(0, nodes.Length).Where(rank => nodes[rank] == node || nodes[partners[rank]] == node)]))).ToList();
            var (plan, problem) = SnapshotPlanner.Plan(holders, 0, 100);
            Assert.True(plan is not null, $"seed {seed}: {string.Join(',', nodes)} without {lost}: {problem}");
            Assert.Equal(Enumerable.Range(0, nodes.Length), plan.Writers.SelectMany(writer => writer.Ranks).Order());
        }
    }

    [Fact]
    public void Plan_OneOfTwoNodesLost_TakesTheNewestFromTheOtherAlone()
    {
        var (plan, problem) = SnapshotPlanner.Plan([Holder("n1", (1, 6, 2, [0, 1]), (1, 7, 2, [0, 1])), Holder("n2")], 5, 100);
        Assert.Null(problem);
        Assert.Equal((1, 7, "the snapshot of step 7 held by n1"), (plan?.Attempt, plan?.Iteration, plan?.Source));
        Assert.Equal("n1/0: 0 1", Text(plan));
    }

    [Fact]
    public void Plan_NewestIsTorn_TakesTheOneBefore()
    {
        // Step 7 never arrived at the partner of rank 0, whose node is lost.
        var (plan, _) = SnapshotPlanner.Plan([Holder("n1", (1, 6, 2, [0, 1]), (1, 7, 2, [1]))], 5, 100);
        Assert.Equal(6, plan?.Iteration);
    }

    [Theory]
    [InlineData(8, 8)]
    [InlineData(7, 7)]
    [InlineData(6, 7)] // rather a gap in the ledger than all steps since the checkpoint again
    public void Plan_StepThatTheJobHasNotHeardOf_IsTheLastChoice(long reported, long taken)
    {
        var (plan, _) = SnapshotPlanner.Plan([Holder("n1", (1, 7, 1, [0]), (1, 8, 1, [0]))], 0, reported);
        Assert.Equal(taken, plan?.Iteration);
    }

    [Fact]
    public void Plan_NothingWhole_SaysWhichRanksAreLost()
    {
        var (plan, problem) = SnapshotPlanner.Plan([Holder("n1", (1, 6, 4, [1, 2]), (1, 7, 4, [1]))], 5, 100);
        Assert.Null(plan);
        Assert.Equal("the snapshot of step 7 is not whole: both copies of ranks 0, 2, 3 are lost", problem);
    }

    [Theory]
    [InlineData(7, true)]
    [InlineData(8, true)]
    [InlineData(6, false)]
    public void Plan_CheckpointAsNew_NeedsNoSnapshot(long checkpoint, bool isNone)
    {
        var (plan, problem) = SnapshotPlanner.Plan([Holder("n1", (1, 7, 1, [0]))], checkpoint, 100);
        Assert.Equal(isNone, plan is null);
        Assert.Null(problem);
    }

    [Fact]
    public void Plan_PartsOnSeveralNodes_AreDealtOutEvenlyAndOnce()
    {
        var (plan, _) = SnapshotPlanner.Plan([Holder("n2", (1, 7, 4, [0, 1, 2, 3])), Holder("n1", (1, 7, 4, [0, 1, 2]))], 0, 100);
        Assert.Equal("n1/0: 0 2; n2/0: 1 3", Text(plan));
        Assert.Equal("the snapshot of step 7 held by n1, n2", plan?.Source);
    }

    [Fact]
    public void Plan_SnapshotsOfTwoAttempts_TakesTheNewerAttempt()
    {
        var (plan, _) = SnapshotPlanner.Plan([Holder("n1", (1, 9, 1, [0]), (2, 7, 1, [0]))], 5, 100);
        Assert.Equal((2, 7), (plan?.Attempt, plan?.Iteration));
    }

    private static string Text(SnapshotPlan? plan) => string.Join("; ", plan?.Writers.Select(writer => $"{writer.GrainKey}: {string.Join(' ', writer.Ranks)}") ?? []);

    private static SnapshotHolder Holder(string node, params (int Attempt, long Iteration, int WorldSize, int[] Ranks)[] holdings) =>
        new(node + "/0", node, [.. holdings.Select(item => new SnapshotHolding(item.Attempt, item.Iteration, item.WorldSize, item.Ranks))]);

    private static LaunchPlan Plan(string[] nodes) => new(
        [.. nodes.Select((node, rank) => new RankPlacement(rank, 0, new DeviceId(node, nodes.Take(rank).Count(earlier => earlier == node)), node))], 1, "cluster:");
}
