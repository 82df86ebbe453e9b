using System.Collections.Immutable;
using System.Globalization;

namespace Megatron.Grains.Jobs;

/// <summary>A device of the cluster: a node and the index of the device on it.</summary>
[GenerateSerializer, Immutable]
public readonly record struct DeviceId([property: Id(0)] string Node, [property: Id(1)] int LocalRank)
{
    /// <summary>Key of the device's rank grain, <c>node/localRank</c>.</summary>
    public string GrainKey => string.Create(CultureInfo.InvariantCulture, $"{Node}/{LocalRank}");
}

/// <summary>A rank and where it runs.</summary>
[GenerateSerializer, Immutable]
public sealed record RankPlacement([property: Id(0)] int Rank, [property: Id(1)] int Stage, [property: Id(2)] DeviceId Device);

/// <summary>Where each rank of an attempt runs and how the ranks find one another.</summary>
/// <param name="Ranks">In rank order.</param>
/// <param name="RendezvousEndpoint">See <c>StartRank.RendezvousEndpoint</c>; the attempt is added to it when the ranks start.</param>
[GenerateSerializer, Immutable]
public sealed record LaunchPlan(
    [property: Id(0)] ImmutableArray<RankPlacement> Ranks, [property: Id(1)] int NumStages, [property: Id(2)] string RendezvousEndpoint)
{
    public int WorldSize => Ranks.Length;

    public ImmutableArray<RankPlacement> StageRanks(int stage) => [.. Ranks.Where(rank => rank.Stage == stage)];
}

/// <summary>Decides which device runs which rank. Pure: devices in, placement and reason out (DESIGN D9).</summary>
public static class LaunchPlanner
{
    /// <summary>
    /// Places ranks in order on the first node that has devices enough. Neighbouring ranks lie on neighbouring devices, so that the inner axes of
    /// the grid (tensor, context) stay inside a node.
    /// </summary>
    /// <returns>A plan, or null with the reason why none fits.</returns>
    public static (LaunchPlan? Plan, string Reason) Plan(JobSpec spec, IReadOnlyCollection<DeviceId> devices)
    {
        if (spec.WorldSize < 1 || spec.PipelineSize < 1 || spec.WorldSize % spec.PipelineSize != 0)
        {
            return (null, string.Create(CultureInfo.InvariantCulture,
                $"The number of ranks {spec.WorldSize} is not a positive multiple of the pipeline size {spec.PipelineSize}; change one of them."));
        }
        var nodes = devices.GroupBy(device => device.Node, StringComparer.Ordinal).OrderBy(node => node.Key, StringComparer.Ordinal).ToList();
        var chosen = nodes.FirstOrDefault(node => node.Count() >= spec.WorldSize);
        if (chosen is null)
        {
            int largest = nodes.Count == 0 ? 0 : nodes.Max(node => node.Count());
            return (null, string.Create(CultureInfo.InvariantCulture,
                $"The job asks for {spec.WorldSize} ranks, but the largest node offers {largest} devices; start fewer ranks (NPROC_PER_NODE)."));
        }
        int ranksPerStage = spec.WorldSize / spec.PipelineSize;
        var ranks = chosen.OrderBy(device => device.LocalRank).Take(spec.WorldSize)
            .Select((device, rank) => new RankPlacement(rank, rank / ranksPerStage, device)).ToImmutableArray();
        return (new LaunchPlan(ranks, spec.PipelineSize, "local:" + spec.JobId),
            string.Create(CultureInfo.InvariantCulture, $"{spec.WorldSize} ranks on node {chosen.Key}"));
    }
}
