using System.Globalization;
using System.Net.NetworkInformation;

namespace Megatron.Testing.Processes;

/// <summary>
/// A bridge on this machine and network namespaces behind it, one per silo, whose cable can be pulled. Needs root and the <c>ip</c> program;
/// everything is removed when it is disposed.
/// </summary>
public sealed class IsolatedNetwork : IAsyncDisposable
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(20);

    // Where a process begins to look for a free subnet; two processes rarely begin at the same.
    private static int lastSubnet = Environment.ProcessId;

    private readonly int subnet;
    private readonly int numNodes;

    private IsolatedNetwork(int subnet, int numNodes) => (this.subnet, this.numNodes) = (subnet, numNodes);

    /// <summary>Address of this machine on the bridge: Redis and consoles.</summary>
    public string HostAddress => HostAddressIn(subnet);

    /// <summary>Makes the network, or returns null when the system does not let us.</summary>
    public static async Task<IsolatedNetwork?> TryCreateAsync(int numNodes, CancellationToken cancellation)
    {
        var network = new IsolatedNetwork(NextSubnet(), numNodes);
        try
        {
            await network.IpAsync(cancellation, "link", "add", network.Bridge, "type", "bridge");
            await network.IpAsync(cancellation, "addr", "add", network.HostAddress + "/24", "dev", network.Bridge);
            await network.IpAsync(cancellation, "link", "set", network.Bridge, "up");
            for (int node = 0; node < numNodes; node++) await network.AddNodeAsync(node, cancellation);
            return network;
        }
        catch (Exception problem) when (problem is InvalidOperationException or System.ComponentModel.Win32Exception)
        {
            await network.DisposeAsync();
            return null;
        }
    }

    /// <summary>Address of a node's silo.</summary>
    public string AddressOf(int node) => string.Create(CultureInfo.InvariantCulture, $"10.77.{subnet}.{node + 1}");

    /// <summary>Words before a program that make it run inside a node's namespace.</summary>
    public IReadOnlyList<string> Prefix(int node) => ["ip", "netns", "exec", NamespaceOf(node)];

    /// <summary>Pulls a node's cable.</summary>
    public Task CutAsync(int node, CancellationToken cancellation) => IpAsync(cancellation, "link", "set", CableOf(node), "down");

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        for (int node = 0; node < numNodes; node++)
        {
            // A namespace lives on while a connection in it is being closed, and its end of the cable with it.
            await TryIpAsync("link", "del", CableOf(node));
            await TryIpAsync("netns", "del", NamespaceOf(node));
        }
        await TryIpAsync("link", "del", Bridge);
    }

    private async Task AddNodeAsync(int node, CancellationToken cancellation)
    {
        await IpAsync(cancellation, "netns", "add", NamespaceOf(node));
        await IpAsync(cancellation, "link", "add", CableOf(node), "type", "veth", "peer", "name", "eth0", "netns", NamespaceOf(node));
        await IpAsync(cancellation, "link", "set", CableOf(node), "master", Bridge, "up");
        await IpAsync(cancellation, "-n", NamespaceOf(node), "addr", "add", AddressOf(node) + "/24", "dev", "eth0");
        await IpAsync(cancellation, "-n", NamespaceOf(node), "link", "set", "eth0", "up");
        await IpAsync(cancellation, "-n", NamespaceOf(node), "link", "set", "lo", "up");
    }

    // A network that was removed lives on for as long as connections in it are being closed, so the next one of this process is another subnet.
    private static int NextSubnet()
    {
        var used = NetworkInterface.GetAllNetworkInterfaces().SelectMany(link => link.GetIPProperties().UnicastAddresses).Select(own => own.Address.ToString()).ToHashSet();
        int next;
        do next = (Interlocked.Increment(ref lastSubnet) & int.MaxValue) % 256;
        while (used.Contains(HostAddressIn(next)));
        return next;
    }

    private static string HostAddressIn(int subnet) => string.Create(CultureInfo.InvariantCulture, $"10.77.{subnet}.254");

    private string Bridge => string.Create(CultureInfo.InvariantCulture, $"mg{subnet}");

    private string NamespaceOf(int node) => string.Create(CultureInfo.InvariantCulture, $"{Bridge}-{node}");

    private string CableOf(int node) => string.Create(CultureInfo.InvariantCulture, $"{Bridge}v{node}");

    private async Task IpAsync(CancellationToken cancellation, params string[] words)
    {
        await using var process = ProgramProcess.Start("ip", words);
        if (await process.ExitAsync(patience, cancellation) != 0)
            throw new InvalidOperationException($"ip {string.Join(' ', words)} failed: {process.Transcript}");
    }

    private async Task TryIpAsync(params string[] words)
    {
        try
        {
            await IpAsync(CancellationToken.None, words);
        }
        catch (Exception problem) when (problem is InvalidOperationException or System.ComponentModel.Win32Exception)
        {
            // What is not there need not be removed.
        }
    }
}
