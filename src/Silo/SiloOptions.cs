using System.Net;
using Megatron.Grains.Cluster;

namespace Megatron.Silo;

/// <summary>What a silo is told at its start.</summary>
public sealed record SiloOptions
{
    /// <summary>Name of the node in the cluster; no slash.</summary>
    public string NodeName { get; init; } = "local";

    /// <summary>Indices of the devices this silo owns: one rank worker each.</summary>
    public required IReadOnlyCollection<int> Devices { get; init; }

    /// <summary>The machine it runs on, whose cores it shares with the other silos there.</summary>
    public HostMachine Machine { get; init; } = new(Environment.MachineName, Environment.ProcessorCount);

    /// <summary>Folder of the rolling JSON log files; null writes none. The folder is made at the start of the silo.</summary>
    public string? LogFolder { get; init; }

    /// <summary>The cluster to join; null makes a cluster of this silo alone, on loopback.</summary>
    public ClusterJoin? Cluster { get; init; }

    /// <summary>How fast other silos are declared dead.</summary>
    public MembershipProfile Membership { get; init; } = MembershipProfile.Tight;

    /// <summary>Options of a silo for one local job: devices 0 to <paramref name="worldSize"/> − 1.</summary>
    public static SiloOptions ForLocalJob(int worldSize, string? logFolder) => new()
    {
        Devices = [.. Enumerable.Range(0, worldSize)],
        LogFolder = logFolder,
        Membership = MembershipProfile.Alone,
    };
}

/// <summary>How a silo joins a cluster and where it listens.</summary>
public sealed record ClusterJoin
{
    /// <summary>Membership and grain state in a Redis; null: the silo at <see cref="Primary"/> keeps both in its memory.</summary>
    public ClusterAddress? Redis { get; init; }

    /// <summary>Silo endpoint of the first silo of a cluster without Redis; its loss ends the cluster.</summary>
    public IPEndPoint? Primary { get; init; }

    /// <summary>Address that other silos and consoles reach this silo by.</summary>
    public IPAddress Address { get; init; } = IPAddress.Loopback;

    /// <summary>Port for other silos; 0 lets the system choose. A fixed port lets a restarted silo replace its dead predecessor at once.</summary>
    public int SiloPort { get; init; }

    /// <summary>Port for consoles; 0 lets the system choose.</summary>
    public int GatewayPort { get; init; }
}
