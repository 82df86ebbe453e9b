using System.Globalization;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Orleans.Runtime.MembershipService.SiloMetadata;

namespace Megatron.Testing.ControlPlane;

/// <summary>
/// A cluster of nodes that are not there, each a silo with devices, all hosted by the one silo that is; a node can be lost. Devices are numbered over
/// all nodes, because the silo tells its workers apart by the number alone.
/// </summary>
public sealed class FakeNodes : ClusterDevices
{
    private readonly Lock gate = new();
    private readonly int devicesPerNode;
    private readonly SortedSet<int> living;

    // Newer than every view of the real membership.
    private long version = 1_000_000;

    public FakeNodes(
        int numNodes, int devicesPerNode, NodeIdentity local, ILocalSiloDetails localSilo, IClusterMembershipService membership, ISiloMetadataCache metadata)
        : base(local, localSilo, membership, metadata)
    {
        this.devicesPerNode = devicesPerNode;
        living = [.. Enumerable.Range(0, numNodes)];
    }

    /// <inheritdoc/>
    public override IReadOnlyCollection<ClusterDevice> All()
    {
        lock (gate)
            return [.. living.SelectMany(node => Enumerable.Range(node * devicesPerNode, devicesPerNode).Select(device => new ClusterDevice(new DeviceId(NameOf(node), device), NameOf(node))))];
    }

    /// <inheritdoc/>
    public override MembershipView View()
    {
        lock (gate)
            return new MembershipView(version, [.. living.Select(NameOf)]);
    }

    /// <inheritdoc/>
    public override IReadOnlyDictionary<string, HostMachine> Machines()
    {
        lock (gate)
            return living.ToDictionary(NameOf, node => new HostMachine(NameOf(node), devicesPerNode));
    }

    /// <inheritdoc/>
    public override bool IsHere(string silo) => true;

    /// <inheritdoc/>
    public override bool Owns(SiloAddress silo, ReadOnlySpan<char> node, int localRank) => node.SequenceEqual(NameOf(localRank / devicesPerNode));

    /// <summary>A node is gone; returns the view that its neighbours would have.</summary>
    public MembershipView Lose(int node)
    {
        lock (gate)
        {
            living.Remove(node);
            version++;
        }
        return View();
    }

    private static string NameOf(int node) => string.Create(CultureInfo.InvariantCulture, $"n{node}");
}
