using System.Collections.Immutable;

namespace Megatron.Grains.Experts;

/// <inheritdoc cref="IExpertShardGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class ExpertShardGrain : Grain, IExpertShardGrain
{
    private readonly SortedDictionary<int, ExpertCounts> byStage = [];
    private ExpertCounts? newest;

    public Task Record(ExpertCounts counts)
    {
        if (newest is { } known && counts.Attempt.Attempt < known.Attempt.Attempt)
            return Task.CompletedTask;
        if (newest?.Attempt != counts.Attempt)
            byStage.Clear();
        byStage[counts.Stage] = newest = counts;
        return Task.CompletedTask;
    }

    public Task<ExpertLoad?> GetLoad()
    {
        if (newest is not { } counts)
            return Task.FromResult<ExpertLoad?>(null);
        int numExperts = counts.TokensPerExpert.Count;
        var shards = ExpertPlacement.Of(counts.Layout, counts.WorldSize, numExperts);
        ImmutableArray<long> tokens = [.. Enumerable.Range(0, numExperts).Select(expert => byStage.Values.Sum(stage => stage.TokensPerExpert[expert]))];
        return Task.FromResult<ExpertLoad?>(ExpertPlacement.LoadOf(shards, counts.Iteration, tokens));
    }
}
