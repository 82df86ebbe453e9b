using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;

namespace Megatron.Client.Cli;

/// <summary>
/// The environment variables that the program reads, all of them, read once. The first five are those of torchrun scripts.
/// </summary>
/// <param name="ProcessesPerNode">NPROC_PER_NODE: ranks on this node; null when not set.</param>
/// <param name="Nodes">NNODES.</param>
/// <param name="NodeRank">NODE_RANK, from 0.</param>
/// <param name="MasterAddress">MASTER_ADDR.</param>
/// <param name="MasterPort">MASTER_PORT.</param>
/// <param name="VisibleDevices">CUDA_VISIBLE_DEVICES.</param>
/// <param name="LibTorch">MEGATRON_LIBTORCH: folder torch/lib of an installed PyTorch.</param>
public sealed record LaunchEnvironment(
    int? ProcessesPerNode, int? Nodes, int? NodeRank, string? MasterAddress, int? MasterPort, string? VisibleDevices, string? LibTorch)
{
    /// <summary>Names of the variables.</summary>
    public static IReadOnlyList<string> Names { get; } =
        ["NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "MEGATRON_LIBTORCH"];

    /// <summary>Ranks of the run: nodes × ranks per node.</summary>
    public int WorldSize => (ProcessesPerNode ?? 1) * (Nodes ?? 1);

    /// <summary>This process's place among those of NNODES nodes; null when there is one node.</summary>
    /// <exception cref="ConfigException">A variable is missing, MASTER_ADDR has no address, or the backend does not reach other nodes: all are listed.</exception>
    public NodePlacement? Placement(string verb, string backend, string device = "auto")
    {
        if (Nodes is not > 1) return null;
        var errors = new List<ConfigError>();
        if (backend != "gloo" && device != "cuda")
            errors.Add(new("CFG004", $"--distributed_backend = {backend} does not reach other nodes in megatron {verb}, but NNODES = {Nodes}; use --distributed_backend gloo or set NNODES = 1."));
        foreach (var (name, isSet) in (ReadOnlySpan<(string, bool)>)[("NODE_RANK", NodeRank is not null), ("MASTER_ADDR", MasterAddress is not null), ("MASTER_PORT", MasterPort is not null)])
            if (!isSet) errors.Add(new("CFG010", $"The environment variable {name} is missing, but NNODES = {Nodes}; set it on every node."));
        var address = MasterAddress is null ? null : Resolve(MasterAddress, errors);
        if (errors.Count > 0 || address is null) throw new ConfigException(errors);
        return new NodePlacement(Nodes.Value, NodeRank ?? 0, ProcessesPerNode ?? 1, new IPEndPoint(address, MasterPort ?? 0));
    }

    private static IPAddress? Resolve(string host, List<ConfigError> errors)
    {
        try
        {
            var addresses = Dns.GetHostAddresses(host);
            return Array.Find(addresses, address => address.AddressFamily == AddressFamily.InterNetwork) ?? addresses[0];
        }
        catch (SocketException problem)
        {
            errors.Add(new("CFG010", $"The environment variable MASTER_ADDR = {host} cannot be resolved ({problem.Message}); set the name or address of node 0."));
            return null;
        }
    }

    /// <summary>Reads the variables; an empty one counts as not set.</summary>
    /// <param name="get">Value of a variable, or null.</param>
    /// <exception cref="ConfigException">CFG010: a variable is no number of its range (all are listed).</exception>
    public static LaunchEnvironment Read(Func<string, string?> get)
    {
        var errors = new List<ConfigError>();
        string? Text(string name) => get(name) is { Length: > 0 } text ? text : null;
        int? Number(string name, int least, int most)
        {
            if (Text(name) is not { } text) return null;
            if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var number) && number >= least && number <= most) return number;
            errors.Add(new("CFG010", $"The environment variable {name} = {text} cannot be used; set a whole number from {least} to {most}."));
            return null;
        }

        var result = new LaunchEnvironment(
            Number("NPROC_PER_NODE", 1, 1024), Number("NNODES", 1, 65536), Number("NODE_RANK", 0, 65535),
            Text("MASTER_ADDR"), Number("MASTER_PORT", 1, 65535), Text("CUDA_VISIBLE_DEVICES"), Text("MEGATRON_LIBTORCH"));
        if (result.NodeRank >= (result.Nodes ?? 1))
            errors.Add(new("CFG010", $"The environment variable NODE_RANK = {result.NodeRank} is not below NNODES = {result.Nodes ?? 1}; set 0 to {(result.Nodes ?? 1) - 1}."));
        return errors.Count == 0 ? result : throw new ConfigException(errors);
    }
}
