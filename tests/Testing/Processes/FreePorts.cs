using System.Net;
using System.Net.Sockets;

namespace Megatron.Testing.Processes;

/// <summary>Free TCP ports on loopback, for programs that need one on their command line.</summary>
public static class FreePorts
{
    // Below the range from which systems take the ports of outgoing connections: a program that is started again must find its port free.
    private const int First = 15_000, Last = 32_000;

    /// <summary>Takes ports that nobody listens on now, all different.</summary>
    public static int[] Take(int count)
    {
        var listeners = new Dictionary<int, TcpListener>();
        while (listeners.Count < count)
        {
            int port = Random.Shared.Next(First, Last);
            if (!listeners.ContainsKey(port) && TryListen(port) is { } listener)
                listeners.Add(port, listener);
        }
        foreach (var listener in listeners.Values)
            listener.Dispose();
        return [.. listeners.Keys];
    }

    private static TcpListener? TryListen(int port)
    {
        var listener = new TcpListener(IPAddress.Loopback, port);
        try
        {
            listener.Start();
            return listener;
        }
        catch (SocketException)
        {
            listener.Dispose();
            return null;
        }
    }
}
