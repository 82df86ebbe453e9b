using System.Collections.Immutable;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Experts;

/// <summary>Experts [<paramref name="FirstExpert"/>, <paramref name="EndExpert"/>) of every layer with experts, and the ranks that hold them.</summary>
/// <param name="Group">Place in the expert-parallel group.</param>
[GenerateSerializer, Immutable]
public sealed record ExpertShard(
    [property: Id(0)] int Group, [property: Id(1)] int FirstExpert, [property: Id(2)] int EndExpert, [property: Id(3)] ImmutableArray<int> Ranks);

/// <summary>Tokens of an expert.</summary>
[GenerateSerializer, Immutable]
public readonly record struct ExpertTokens([property: Id(0)] int Expert, [property: Id(1)] long Tokens);

/// <summary>What a shard's experts had to do in a step.</summary>
/// <param name="Tokens">Assignments of tokens, over all layers and ranks.</param>
/// <param name="Imbalance">Most loaded expert over the mean of the shard; 1 when all are equal, 0 without tokens.</param>
[GenerateSerializer, Immutable]
public sealed record ExpertShardLoad(
    [property: Id(0)] ExpertShard Shard, [property: Id(1)] long Tokens, [property: Id(2)] ExpertTokens Most, [property: Id(3)] ExpertTokens Least,
    [property: Id(4)] double Imbalance);

/// <summary>The load of all experts of a job in one step.</summary>
/// <param name="TokensPerExpert">The histogram.</param>
/// <param name="Imbalance">Most loaded expert over the mean of all.</param>
/// <param name="ShardImbalance">Most loaded shard over the mean of the shards: what the ranks wait for.</param>
[GenerateSerializer, Immutable]
public sealed record ExpertLoad(
    [property: Id(0)] long Iteration, [property: Id(1)] ImmutableArray<long> TokensPerExpert, [property: Id(2)] ImmutableArray<ExpertShardLoad> Shards,
    [property: Id(3)] double Imbalance, [property: Id(4)] double ShardImbalance);

/// <summary>What the routers of one pipeline stage gave to each expert in a step, and where the attempt has its experts.</summary>
[GenerateSerializer, Immutable]
public sealed record ExpertCounts(
    [property: Id(0)] AttemptId Attempt, [property: Id(1)] int Stage, [property: Id(2)] long Iteration, [property: Id(3)] IReadOnlyList<long> TokensPerExpert,
    [property: Id(4)] JobLayout Layout, [property: Id(5)] int WorldSize);
