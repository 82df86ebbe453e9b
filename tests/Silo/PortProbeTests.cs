using System.Net;
using System.Net.Sockets;

namespace Megatron.Silo.Tests;

/// <summary>Only a refusal proves that a silo is gone.</summary>
public sealed class PortProbeTests
{
    [Fact]
    public async Task IsGone_WhileSomebodyListens_IsFalse_AndAfterwardsTrue()
    {
        IPEndPoint address;
        using (var listener = new TcpListener(IPAddress.Loopback, 0))
        {
            listener.Start();
            address = (IPEndPoint)listener.LocalEndpoint;
            Assert.False(await new PortProbe().IsGoneAsync(address));
        }
        Assert.True(await new PortProbe().IsGoneAsync(address));
    }
}
