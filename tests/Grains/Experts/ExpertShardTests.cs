using System.Collections.Immutable;
using Megatron.Compute.Training;
using Megatron.Grains.Experts;
using Megatron.Grains.Jobs;
using Megatron.Testing;

namespace Megatron.Grains.Tests.Experts;

public sealed class ExpertShardTests
{
    [Fact]
    public void Of_TwoStagesAndTwoExpertRanks_GivesEveryReplicaOfAShard()
    {
        var layout = new JobLayout { PipelineSize = 2, ExpertSize = 2 };
        var shards = ExpertPlacement.Of(layout, worldSize: 8, numExperts: 6);
        Assert.Equal([(0, 0, 3), (1, 3, 6)], shards.Select(shard => (shard.Group, shard.FirstExpert, shard.EndExpert)));
        Assert.Equal([0, 2, 4, 6], shards[0].Ranks.AsEnumerable());
        Assert.Equal([1, 3, 5, 7], shards[1].Ranks.AsEnumerable());
    }

    [Fact]
    public void LoadOf_Histogram_NamesMostAndLeastAndTheImbalances()
    {
        var shards = ExpertPlacement.Of(new JobLayout { ExpertSize = 2 }, worldSize: 2, numExperts: 4);
        var load = ExpertPlacement.LoadOf(shards, 5, [10, 30, 0, 20]);
        Assert.Equal((5L, 2.0, 4 / 3.0), (load.Iteration, load.Imbalance, load.ShardImbalance));
        Assert.Equal((40L, new ExpertTokens(1, 30), new ExpertTokens(0, 10), 1.5), (load.Shards[0].Tokens, load.Shards[0].Most, load.Shards[0].Least, load.Shards[0].Imbalance));
        Assert.Equal((20L, new ExpertTokens(3, 20), new ExpertTokens(2, 0), 2.0), (load.Shards[1].Tokens, load.Shards[1].Most, load.Shards[1].Least, load.Shards[1].Imbalance));
        Assert.Equal(0, ExpertPlacement.LoadOf(shards, 1, [0, 0, 0, 0]).Imbalance);
    }

    [Fact]
    public void Of_RandomGrids_GiveEachExpertToOneShardAndEachRankToOne()
    {
        var random = new Random(7);
        for (int i = 0; i < 200; i++)
        {
            int[] sizes = [1, 2, 4];
            var layout = new JobLayout { PipelineSize = sizes[random.Next(3)], TensorSize = sizes[random.Next(2)], ExpertSize = sizes[random.Next(3)], ExpertTensorSize = 1 };
            int worldSize = layout.ReplicaSize * 4, numExperts = 4 * random.Next(1, 33);
            var shards = ExpertPlacement.Of(layout, worldSize, numExperts);
            Assert.Equal(Enumerable.Range(0, numExperts), shards.SelectMany(shard => Enumerable.Range(shard.FirstExpert, shard.EndExpert - shard.FirstExpert)));
            Assert.Equal(Enumerable.Range(0, worldSize), shards.SelectMany(shard => shard.Ranks).Order());
            var histogram = Enumerable.Range(0, numExperts).Select(_ => random.NextInt64(100)).ToImmutableArray();
            Assert.Equal(histogram.Sum(), ExpertPlacement.LoadOf(shards, 1, histogram).Shards.Sum(load => load.Tokens));
        }
    }

    [Fact]
    public async Task GetLoad_OfAJobWithTwoStages_SumsRanksAndStages()
    {
        await using var cluster = await TrainingCluster.StartAsync(4, (_, command) => command is StartRank start
            ? [FakeRankWorker.Started(start), FakeRankWorker.Step(start, 1) with { TokensPerExpert = [1, start.Rank] }, new RankFinished(start.Attempt, start.Rank, 1, Completed: true)]
            : []);
        var layout = new JobLayout { PipelineSize = 2, ExpertSize = 2 };
        await cluster.Job("a").Submit(TrainingCluster.Spec("a", worldSize: 4, pipelineSize: 2) with { Layout = layout });
        await cluster.WatchToEndAsync("a");
        var experts = cluster.Grains.GetGrain<IExpertShardGrain>("a");
        var load = await experts.GetLoad();
        while (load is null || load.TokensPerExpert.Sum() < 10) // the counts are on their way and nobody answers for them
            load = await experts.GetLoad();
        Assert.Equal([4L, 6L], load.TokensPerExpert.AsEnumerable());
        Assert.Equal([0, 2], load.Shards[0].Shard.Ranks.AsEnumerable());
        Assert.Null(await cluster.Grains.GetGrain<IExpertShardGrain>("nobody").GetLoad());
    }
}
