using System.Net;
using System.Net.Sockets;
using Megatron.Grains.Cluster;

namespace Megatron.Silo;

/// <summary>Connects to the port of a silo: when its process is gone, the machine refuses within a round trip.</summary>
public sealed class PortProbe : ISiloProbe
{
    private static readonly TimeSpan patience = TimeSpan.FromMilliseconds(500);

    /// <inheritdoc/>
    public async Task<bool> IsGoneAsync(IPEndPoint silo)
    {
        using var socket = new Socket(silo.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        using var timeout = new CancellationTokenSource(patience);
        try
        {
            await socket.ConnectAsync(silo, timeout.Token);
            return false;
        }
        catch (SocketException refused)
        {
            return refused.SocketErrorCode == SocketError.ConnectionRefused;
        }
        catch (OperationCanceledException)
        {
            return false;
        }
    }
}
