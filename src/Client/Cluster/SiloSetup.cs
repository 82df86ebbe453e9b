using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;

namespace Megatron.Client.Cluster;

/// <summary>What a silo is told on its command line: its name, its devices, its addresses.</summary>
public static class SiloSetup
{
    private const int MaxDevices = 1024;

    /// <summary>Reads <c>0,2,5</c> or <c>0-3</c>.</summary>
    /// <exception cref="ConfigException">CFG003: no such list.</exception>
    public static IReadOnlyCollection<int> ParseDevices(string text)
    {
        var devices = new SortedSet<int>();
        foreach (string part in text.Split(','))
        {
            string[] ends = part.Split('-');
            if (ends.Length > 2 || !TryIndex(ends[0], out int first) || !TryIndex(ends[^1], out int last) || last < first)
                throw new ConfigException("CFG003", $"--silo_devices = {text} cannot be read; give device numbers such as 0,1 or 0-3.");
            for (int index = first; index <= last; index++) devices.Add(index);
        }
        return devices;
    }

    /// <summary>The devices of this process: those named, else NPROC_PER_NODE of them, else every GPU, else one for the CPU.</summary>
    /// <param name="libTorch">Loaded only when GPUs must be counted.</param>
    public static IReadOnlyCollection<int> Devices(string? devices, LaunchEnvironment environment, Func<LoadedLibTorch> libTorch)
    {
        if (devices is { Length: > 0 }) return ParseDevices(devices);
        int count = environment.ProcessesPerNode ?? Math.Max(1, CudaDevices.Count(libTorch()));
        return [.. Enumerable.Range(0, count)];
    }

    /// <summary>An IP address for the others to reach this machine by; a host name is looked up.</summary>
    /// <exception cref="ConfigException">NET002: no such host.</exception>
    public static async Task<IPAddress> ResolveAsync(string option, string host, CancellationToken cancellation)
    {
        if (IPAddress.TryParse(host, out var address)) return address;
        try
        {
            var found = await Dns.GetHostAddressesAsync(host, cancellation);
            if (found.OrderBy(address => address.AddressFamily != AddressFamily.InterNetwork).FirstOrDefault() is { } first) return first;
        }
        catch (SocketException)
        {
            // Said below, like an empty answer.
        }
        throw new ConfigException("NET002", $"{option} = {host} is no host that this machine knows; correct the name or give an IP address.");
    }

    /// <summary>The address of this machine on the way to another one; nothing is sent.</summary>
    /// <exception cref="ConfigException">NET003: there is no way to it.</exception>
    public static IPAddress AddressTowards(IPAddress other)
    {
        try
        {
            using var socket = new Socket(other.AddressFamily, SocketType.Dgram, ProtocolType.Udp);
            socket.Connect(other, port: 9);
            return (socket.LocalEndPoint as IPEndPoint)?.Address ?? IPAddress.Loopback;
        }
        catch (SocketException)
        {
            throw new ConfigException("NET003", $"This machine has no network route to {other}; correct the address or the network.");
        }
    }

    /// <summary>Refuses a port that another program has.</summary>
    /// <exception cref="ConfigException">NET001.</exception>
    public static void RequireFree(string option, IPAddress address, int port)
    {
        if (port == 0) return;
        try
        {
            using var listener = new TcpListener(address, port);
            listener.Start();
        }
        catch (SocketException fault)
        {
            throw new ConfigException("NET001", fault.SocketErrorCode == SocketError.AddressAlreadyInUse
                ? string.Create(CultureInfo.InvariantCulture, $"{option} = {port} is in use on {address} by another program; choose another port.")
                : string.Create(CultureInfo.InvariantCulture, $"This machine cannot listen on {address}:{port} ({fault.Message}); correct the address or the port."));
        }
    }

    private static bool TryIndex(string text, out int index) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out index) && index < MaxDevices;
}
