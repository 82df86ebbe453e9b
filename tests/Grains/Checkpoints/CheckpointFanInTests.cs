using Megatron.Compute.Training;
using Megatron.Grains.Checkpoints;

namespace Megatron.Grains.Tests.Checkpoints;

public sealed class CheckpointFanInTests
{
    private static readonly AttemptId attempt = new("job", 2);

    [Fact]
    public void Add_AllRanks_CommitsWithReceiptsInRankOrder()
    {
        var fanIn = new CheckpointFanIn(attempt, 3);
        Assert.Null(fanIn.Add(Receipt(2, "s", 5)).Commit);
        Assert.Null(fanIn.Add(Receipt(0, "s", 5)).Commit);
        Assert.Null(fanIn.Add(Receipt(0, "s", 5)).Commit);
        var commit = fanIn.Add(Receipt(1, "s", 5)).Commit;
        Assert.Equal((attempt, "s", 5L), (commit?.Attempt, commit?.SaveId, commit?.Iteration));
        Assert.Equal([0, 1, 2], commit?.Receipts.Select(receipt => receipt.Rank));
    }

    [Fact]
    public void Add_RepeatedAfterAll_CommitsAgainUntilTheCommitIsReported()
    {
        var fanIn = new CheckpointFanIn(attempt, 1);
        Assert.NotNull(fanIn.Add(Receipt(0, "s", 5)).Commit);
        Assert.NotNull(fanIn.Add(Receipt(0, "s", 5)).Commit);
        fanIn.MarkCommitted(new CheckpointCommitted(attempt, 0, "s", 5, "/iter"));
        Assert.Null(fanIn.Add(Receipt(0, "s", 5)).Commit);
        Assert.NotNull(fanIn.Add(Receipt(0, "t", 6)).Commit);
    }

    [Theory]
    [InlineData(1, 0, 5)]
    [InlineData(3, 0, 5)]
    [InlineData(2, 2, 5)]
    [InlineData(2, 0, 6)]
    public void Add_OfAnotherAttemptRankOrStep_NeverCommits(int receiptAttempt, int rank, long iteration)
    {
        var fanIn = new CheckpointFanIn(attempt, 2);
        fanIn.Add(Receipt(1, "s", 5));
        var (commit, reason) = fanIn.Add(Receipt(rank, "s", iteration) with { Attempt = new AttemptId("job", receiptAttempt) });
        Assert.Null(commit);
        Assert.NotEqual("", reason);
    }

    private static CheckpointReceipt Receipt(int rank, string saveId, long iteration) => new(attempt, rank, saveId, iteration, [], "{}");
}
