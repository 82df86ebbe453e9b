using Megatron.Grains.Jobs;
using Orleans.Runtime.MembershipService.SiloMetadata;

namespace Megatron.Grains.Cluster;

/// <summary>
/// Which node each silo runs on and which devices it owns, as this silo sees the cluster now. What planning, starting and losing ranks needs can be
/// overridden by a cluster of nodes that are not there.
/// </summary>
public class ClusterDevices
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

    /// <summary>This silo's address.</summary>
    public string LocalSilo => localSilo.SiloAddress.ToParsableString();

    /// <summary>Whether a plan that names a silo means this one.</summary>
    public virtual bool IsHere(string silo) => silo == LocalSilo;

    /// <summary>Whether a silo owns a device.</summary>
    public virtual bool Owns(SiloAddress silo, ReadOnlySpan<char> node, int localRank) =>
        IdentityOf(silo) is { } identity && identity.Devices.Contains(localRank) && node.SequenceEqual(identity.Name);

    /// <summary>All devices of active silos, each once.</summary>
    public virtual IReadOnlyCollection<ClusterDevice> All() =>
        [.. membership.CurrentSnapshot.Members.Values
            .Where(member => member.Status is SiloStatus.Active)
            .SelectMany(member => DevicesOf(member.SiloAddress).Select(device => new ClusterDevice(device, member.SiloAddress.ToParsableString())))
            .DistinctBy(device => device.Id)];

    /// <summary>The machine of each active silo that has told it.</summary>
    public virtual IReadOnlyDictionary<string, HostMachine> Machines() => membership.CurrentSnapshot.Members.Values
        .Where(member => member.Status is SiloStatus.Active)
        .Select(member => (Silo: member.SiloAddress.ToParsableString(), Node: IdentityOf(member.SiloAddress)))
        .Where(silo => silo.Node is not null).ToDictionary(silo => silo.Silo, silo => silo.Node!.Machine, StringComparer.Ordinal); // checked in the line above

    /// <summary>The membership as this silo knows it.</summary>
    public virtual MembershipView View() => ViewOf(membership.CurrentSnapshot);

    /// <summary>The silos that take part according to a snapshot.</summary>
    public static MembershipView ViewOf(ClusterMembershipSnapshot snapshot) => new(snapshot.Version.Value,
        [.. snapshot.Members.Values.Where(member => member.Status is SiloStatus.Active).Select(member => member.SiloAddress.ToParsableString())]);

    /// <summary>Every silo that the membership table knows and that is not long gone.</summary>
    public IReadOnlyList<(string Address, string Status, NodeIdentity? Node)> Silos() =>
        [.. membership.CurrentSnapshot.Members.Values.Select(member =>
            (member.SiloAddress.ToParsableString(), member.Status.ToString(), member.Status is SiloStatus.Dead ? null : IdentityOf(member.SiloAddress)))];

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

    private IEnumerable<DeviceId> DevicesOf(SiloAddress silo) => IdentityOf(silo)?.DeviceIds ?? [];
}
