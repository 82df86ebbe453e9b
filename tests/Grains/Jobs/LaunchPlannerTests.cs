using Megatron.Grains.Jobs;

namespace Megatron.Grains.Tests.Jobs;

public sealed class LaunchPlannerTests
{
    [Fact]
    public void Plan_PicksTheFirstNodeWithEnoughDevicesInDeviceOrder()
    {
        DeviceId[] devices = [new("b", 1), new("b", 0), new("a", 0), new("b", 2), new("b", 3)];
        var (plan, reason) = LaunchPlanner.Plan(TrainingCluster.Spec("job", worldSize: 4, pipelineSize: 2), devices);
        Assert.NotNull(plan);
        Assert.Equal(["b/0", "b/1", "b/2", "b/3"], plan.Ranks.Select(rank => rank.Device.GrainKey));
        Assert.Equal([0, 0, 1, 1], plan.Ranks.Select(rank => rank.Stage));
        Assert.Equal([2, 3], plan.StageRanks(1).Select(rank => rank.Rank));
        Assert.Equal("4 ranks on node b", reason);
    }

    [Theory]
    [InlineData(3, 1, "asks for 3 ranks, but the largest node offers 2")]
    [InlineData(2, 4, "2 is not a positive multiple of the pipeline size 4")]
    [InlineData(0, 1, "0 is not a positive multiple")]
    public void Plan_ThatDoesNotFit_SaysWhy(int worldSize, int pipelineSize, string reason)
    {
        DeviceId[] devices = [new("a", 0), new("b", 0), new("b", 1)];
        var (plan, why) = LaunchPlanner.Plan(TrainingCluster.Spec("job", worldSize, pipelineSize), devices);
        Assert.Null(plan);
        Assert.Contains(reason, why, StringComparison.Ordinal);
    }
}
