using System.Globalization;
using Megatron.Grains.Cluster;
using Orleans.Placement;
using Orleans.Runtime.Placement;

namespace Megatron.Grains.Ranks;

/// <summary>Places a grain whose key is <c>node/localRank</c>, or ends with it behind a slash, on the silo that owns that device.</summary>
[Serializable, GenerateSerializer, Immutable]
public sealed class DeviceOwnerPlacement : PlacementStrategy
{
}

/// <summary>Marks a grain class for <see cref="DeviceOwnerPlacement"/>.</summary>
[AttributeUsage(AttributeTargets.Class)]
public sealed class DeviceOwnerPlacementAttribute : PlacementAttribute
{
    public DeviceOwnerPlacementAttribute() : base(new DeviceOwnerPlacement()) { }
}

/// <summary>No active silo that is known here owns a device: its silo is gone, or so new that word of it is still on its way.</summary>
[GenerateSerializer]
public sealed class DeviceUnknownException : OrleansException
{
    public DeviceUnknownException(string message) : base(message) { }
}

/// <summary>Carries out <see cref="DeviceOwnerPlacement"/>.</summary>
internal sealed class DeviceOwnerPlacementDirector : IPlacementDirector
{
    private readonly ClusterDevices cluster;

    public DeviceOwnerPlacementDirector(ClusterDevices cluster) => this.cluster = cluster;

    public Task<SiloAddress> OnAddActivation(PlacementStrategy strategy, PlacementTarget target, IPlacementContext context)
    {
        string key = target.GrainIdentity.Key.ToString() ?? "";
        int slash = key.LastIndexOf('/');
        if (slash > 0 && int.TryParse(key.AsSpan(slash + 1), NumberStyles.None, CultureInfo.InvariantCulture, out int localRank))
        {
            int node = key.LastIndexOf('/', slash - 1) + 1;
            foreach (var silo in context.GetCompatibleSilos(target))
            {
                if (cluster.Owns(silo, key.AsSpan(node, slash - node), localRank))
                    return Task.FromResult(silo);
            }
        }
        throw new DeviceUnknownException($"No active silo owns the device '{key}'.");
    }
}
