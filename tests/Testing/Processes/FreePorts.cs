using System.Net;
using System.Net.Sockets;

namespace Megatron.Testing.Processes;

/// <summary>Ports of this machine that nobody uses.</summary>
public static class FreePorts
{
    /// <summary>Asks the system for several ports at once, so that they differ.</summary>
    public static int[] Take(int count)
    {
        var listeners = Enumerable.Range(0, count).Select(_ => new TcpListener(IPAddress.Loopback, 0)).ToList();
        foreach (var listener in listeners) listener.Start();
        int[] ports = [.. listeners.Select(listener => ((IPEndPoint)listener.LocalEndpoint).Port)];
        foreach (var listener in listeners) listener.Dispose();
        return ports;
    }
}
