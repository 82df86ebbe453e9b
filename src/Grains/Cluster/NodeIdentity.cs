using System.Collections.Immutable;
using System.Globalization;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Cluster;

/// <summary>The node this silo runs on and the devices it owns; every silo of a cluster learns it as silo metadata.</summary>
public sealed class NodeIdentity
{
    private const string NodeKey = "node";
    private const string DevicesKey = "devices";
    private const string HostKey = "host";
    private const string CoresKey = "cores";

    /// <param name="name">Unique in the cluster, e.g. the host name; no slash.</param>
    /// <param name="devices">Indices of the devices this silo owns.</param>
    /// <param name="machine">Where it runs.</param>
    public NodeIdentity(string name, IEnumerable<int> devices, HostMachine machine)
    {
        if (name.Length == 0 || name.Contains('/'))
            throw new ArgumentException($"The node name '{name}' is empty or contains '/'.", nameof(name));
        Name = name;
        Devices = [.. devices];
        Machine = machine;
    }

    public string Name { get; }

    public ImmutableSortedSet<int> Devices { get; }

    /// <summary>Several silos, as nodes of their own, may share it.</summary>
    public HostMachine Machine { get; }

    /// <summary>The devices as the planner knows them.</summary>
    public IEnumerable<DeviceId> DeviceIds => Devices.Select(index => new DeviceId(Name, index));

    /// <summary>The form in which Orleans hands it to the other silos.</summary>
    public Dictionary<string, string> ToMetadata() => new()
    {
        [NodeKey] = Name,
        [DevicesKey] = string.Join(',', Devices.Select(index => index.ToString(CultureInfo.InvariantCulture))),
        [HostKey] = Machine.Name,
        [CoresKey] = Machine.NumCores.ToString(CultureInfo.InvariantCulture),
    };

    /// <summary>Reads what another silo announced; null when it owns no devices, as a coordinator or a silo of another program.</summary>
    public static NodeIdentity? FromMetadata(IReadOnlyDictionary<string, string> metadata)
    {
        if (!metadata.TryGetValue(NodeKey, out var name) || !metadata.TryGetValue(DevicesKey, out var devices))
            return null;
        if (!metadata.TryGetValue(HostKey, out var host) || !metadata.TryGetValue(CoresKey, out var cores))
            return null;
        return new NodeIdentity(
            name, devices.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(index => int.Parse(index, CultureInfo.InvariantCulture)),
            new HostMachine(host, int.Parse(cores, CultureInfo.InvariantCulture)));
    }
}
