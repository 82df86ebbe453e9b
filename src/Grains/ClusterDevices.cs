using Megatron.Grains.Jobs;
using Orleans.Runtime.MembershipService.SiloMetadata;

namespace Megatron.Grains;

/// <summary>Which node each active silo runs on and which devices it owns, as this silo sees the cluster now.</summary>
public sealed class ClusterDevices
{
    private readonly NodeIdentity local;
    private readonly ILocalSiloDetails localSilo;
    private readonly IClusterMembershipService membership;
    private readonly ISiloMetadataCache metadata;

    public ClusterDevices(NodeIdentity local, ILocalSiloDetails localSilo, IClusterMembershipService membership, ISiloMetadataCache metadata)
    {
        this.local = local;
        this.localSilo = localSilo;
        this.membership = membership;
        this.metadata = metadata;
    }

    /// <summary>All devices of active silos.</summary>
    public IReadOnlyCollection<DeviceId> All() =>
        [.. membership.CurrentSnapshot.Members.Values
            .Where(member => member.Status is SiloStatus.Active)
            .Select(member => IdentityOf(member.SiloAddress))
            .OfType<NodeIdentity>()
            .SelectMany(node => node.DeviceIds)
            .Distinct()];

    /// <summary>
    /// What a silo announced; null while unknown. The own identity is known without the cache, which is filled in the background and may
    /// be empty at the first call after the start.
    /// </summary>
    public NodeIdentity? IdentityOf(SiloAddress silo)
    {
        if (silo.Equals(localSilo.SiloAddress))
            return local;
        return metadata.GetSiloMetadata(silo) is { } known ? NodeIdentity.FromMetadata(known.Metadata) : null;
    }
}
