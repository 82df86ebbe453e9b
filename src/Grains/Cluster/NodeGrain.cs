using Megatron.Grains.Ranks;
using Orleans.Placement;

namespace Megatron.Grains.Cluster;

/// <inheritdoc cref="INodeGrain"/>
[DeviceOwnerPlacement, KeepAlive, Immovable]
internal sealed class NodeGrain : Grain, INodeGrain
{
    public Task Ping() => Task.CompletedTask;
}
