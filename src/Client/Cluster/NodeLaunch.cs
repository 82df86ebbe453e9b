using System.Globalization;
using System.Net;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Silo;

namespace Megatron.Client.Cluster;

/// <summary>This node's part in a launch of several nodes: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NPROC_PER_NODE.</summary>
/// <param name="NumNodes">All nodes.</param>
/// <param name="NodeRank">This node, from 0; node 0 submits the job.</param>
/// <param name="RanksPerNode">Ranks of each node.</param>
/// <param name="Master">Where the silo of node 0 listens.</param>
public sealed record NodeLaunch(int NumNodes, int NodeRank, int RanksPerNode, IPEndPoint Master)
{
    /// <summary>Whether this is node 0.</summary>
    public bool IsMaster => NodeRank == 0;

    /// <summary>Name of this node in the cluster.</summary>
    public string NodeName => string.Create(CultureInfo.InvariantCulture, $"node{NodeRank}");

    /// <summary>Reads it from the variables.</summary>
    /// <exception cref="ConfigException">CFG010: a variable is missing (all are listed); NET002: no such host.</exception>
    public static async Task<NodeLaunch> ReadAsync(LaunchEnvironment environment, CancellationToken cancellation)
    {
        var errors = new List<ConfigError>();
        void Require(bool isSet, string name, string remedy)
        {
            if (!isSet) errors.Add(new("CFG010", string.Create(CultureInfo.InvariantCulture, $"NNODES = {environment.Nodes}, but the environment variable {name} is not set; {remedy}.")));
        }

        Require(environment.NodeRank is not null, "NODE_RANK", string.Create(CultureInfo.InvariantCulture, $"set 0 on the first node to {environment.Nodes - 1} on the last"));
        Require(environment.MasterAddress is not null, "MASTER_ADDR", "set the address of node 0 on every node");
        Require(environment.MasterPort is not null, "MASTER_PORT", "set the same free port of node 0 on every node");
        if (errors.Count > 0) throw new ConfigException(errors);
        var address = await SiloSetup.ResolveAsync("MASTER_ADDR", environment.MasterAddress ?? "", cancellation);
        return new NodeLaunch(
            environment.Nodes ?? 1, environment.NodeRank ?? 0, environment.ProcessesPerNode ?? 1, new IPEndPoint(address, environment.MasterPort ?? 0));
    }

    /// <summary>The silo of this node.</summary>
    public SiloOptions SiloOptions() => new()
    {
        NodeName = NodeName,
        Devices = [.. Enumerable.Range(0, RanksPerNode)],
        Cluster = new ClusterJoin
        {
            Primary = Master,
            Address = IsMaster ? Master.Address : SiloSetup.AddressTowards(Master.Address),
            SiloPort = IsMaster ? Master.Port : 0,
        },
    };
}
