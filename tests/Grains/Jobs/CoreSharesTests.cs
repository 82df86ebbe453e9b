using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

public sealed class CoreSharesTests
{
    private static readonly Dictionary<string, HostMachine> machines = new()
    {
        ["s0"] = new("big", 8), ["s1"] = new("big", 8), ["s2"] = new("small", 2), ["s3"] = new("small", 2),
    };

    [Fact]
    public void Divide_SilosOfOneMachine_ShareItsCores()
    {
        var plan = CoreShares.Divide(Plan("s0", "s0", "s1", "s2"), [], machines);
        Assert.Equal([2, 2, 2, 2], plan.Ranks.Select(rank => rank.NumThreads));
        Assert.Equal([4, 4], CoreShares.Divide(Plan("s0", "s1"), [], machines).Ranks.Select(rank => rank.NumThreads));
    }

    [Fact]
    public void Divide_RanksOfOtherJobs_TakeTheirShare() =>
        Assert.Equal([2, 2], CoreShares.Divide(Plan("s0", "s1"), ["s1", "s0", "s2"], machines).Ranks.Select(rank => rank.NumThreads));

    [Fact]
    public void Divide_MoreRanksThanCores_GivesOneThreadEach() =>
        Assert.Equal([1, 1, 1], CoreShares.Divide(Plan("s2", "s3", "s3"), [], machines).Ranks.Select(rank => rank.NumThreads));

    [Fact]
    public void Divide_UnknownMachine_LeavesItToTheWorker() =>
        Assert.Equal([8, null], CoreShares.Divide(Plan("s0", "s9"), ["s9"], machines).Ranks.Select(rank => rank.NumThreads));

    [Fact]
    public async Task Start_OnTwoSilosOfAMachine_CarriesTheShareOfBoth()
    {
        await using var cluster = await TrainingCluster.StartAsync(2, numSilos: 2);
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 3));
        var first = await cluster.Worker(0, 0).NextAsync<StartRank>();
        var second = await cluster.Worker(1, 0).NextAsync<StartRank>();
        Assert.Equal((TrainingCluster.NumCores / 3, TrainingCluster.NumCores / 3), (first.NumThreads, second.NumThreads));
    }

    private static LaunchPlan Plan(params string[] silos) =>
        new([.. silos.Select((silo, rank) => new RankPlacement(rank, 0, new DeviceId("node of " + silo, rank), silo))], 1, "cluster:");
}
