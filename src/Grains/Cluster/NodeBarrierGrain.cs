using Orleans.Placement;

namespace Megatron.Grains.Cluster;

/// <summary>Counts the nodes that have seen the end.</summary>
[PreferLocalPlacement, KeepAlive]
internal sealed class NodeBarrierGrain : Grain, INodeBarrier
{
    private readonly HashSet<int> arrived = [];

    public Task Open() => Task.CompletedTask;

    public Task<int> Arrive(int nodeRank)
    {
        arrived.Add(nodeRank);
        return Task.FromResult(arrived.Count);
    }
}
