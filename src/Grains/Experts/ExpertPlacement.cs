using System.Collections.Immutable;
using Megatron.Compute.Distributed;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Experts;

/// <summary>Which rank holds which experts, and how evenly tokens fall on them. Pure (DESIGN D9).</summary>
public static class ExpertPlacement
{
    /// <summary>The shards in the order of their experts: each expert-parallel rank holds a stretch of the same length.</summary>
    public static ImmutableArray<ExpertShard> Of(JobLayout layout, int worldSize, int numExperts)
    {
        var dims = new ParallelDims(worldSize, layout.TensorSize, layout.PipelineSize, layout.ContextSize, layout.ExpertSize, layout.ExpertTensorSize);
        int length = numExperts / layout.ExpertSize;
        return [.. Enumerable.Range(0, layout.ExpertSize).Select(group => new ExpertShard(
            group, group * length, (group + 1) * length, [.. Enumerable.Range(0, worldSize).Where(rank => dims.ExpertOf(rank).Ep == group)]))];
    }

    /// <summary>The load of a histogram on the shards.</summary>
    public static ExpertLoad LoadOf(ImmutableArray<ExpertShard> shards, long iteration, ImmutableArray<long> tokensPerExpert)
    {
        ImmutableArray<ExpertShardLoad> loads = [.. shards.Select(shard => LoadOf(shard, tokensPerExpert))];
        return new ExpertLoad(iteration, tokensPerExpert, loads, ImbalanceOf([.. tokensPerExpert]), ImbalanceOf([.. loads.Select(load => load.Tokens)]));
    }

    private static ExpertShardLoad LoadOf(ExpertShard shard, ImmutableArray<long> tokensPerExpert)
    {
        var experts = Enumerable.Range(shard.FirstExpert, shard.EndExpert - shard.FirstExpert).Select(expert => new ExpertTokens(expert, tokensPerExpert[expert])).ToList();
        return new ExpertShardLoad(
            shard, experts.Sum(expert => expert.Tokens), experts.MaxBy(expert => expert.Tokens), experts.MinBy(expert => expert.Tokens),
            ImbalanceOf([.. experts.Select(expert => expert.Tokens)]));
    }

    private static double ImbalanceOf(long[] loads) => loads.Sum() == 0 ? 0 : loads.Max() / loads.Average();
}
