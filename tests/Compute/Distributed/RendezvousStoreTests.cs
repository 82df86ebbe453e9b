using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using Megatron.Compute.Distributed;

namespace Megatron.Compute.Tests.Distributed;

public sealed class InProcessRendezvousStoreTests : RendezvousStoreContract
{
    protected override IStorePair Open() => new Pair(new InProcessRendezvousStore());

    [Fact]
    public void Prefixed_TwoAttempts_DoNotMeet()
    {
        var store = new InProcessRendezvousStore();
        var first = new PrefixedRendezvousStore(store, "job/1/");
        var second = new PrefixedRendezvousStore(store, "job/2/");
        first.Set("a", [1]);
        Assert.Throws<RankFaultException>(() => second.Get("a", TimeSpan.Zero, default));
        Assert.Equal(["job/1/a"], store.Keys(""));
        Assert.Equal(["a"], first.Keys(""));
    }

    private sealed record Pair(InProcessRendezvousStore Store) : IStorePair
    {
        public IRendezvousStore First => Store;

        public IRendezvousStore Second => Store;

        public void Dispose() { }
    }
}

public sealed class PrefixedRendezvousStoreTests : RendezvousStoreContract
{
    protected override IStorePair Open() => new Pair(new InProcessRendezvousStore());

    private sealed record Pair(InProcessRendezvousStore Store) : IStorePair
    {
        public IRendezvousStore First { get; } = new PrefixedRendezvousStore(Store, "attempt-1/");

        public IRendezvousStore Second { get; } = new PrefixedRendezvousStore(Store, "attempt-1/");

        public void Dispose() { }
    }
}

public sealed class TcpRendezvousStoreTests : RendezvousStoreContract
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);

    protected override IStorePair Open() => new Pair(IPAddress.Loopback);

    [Fact]
    public void Connect_Ipv6_WorksWhereTheMachineHasIt()
    {
        Assert.SkipUnless(Socket.OSSupportsIPv6 && HasIpv6Loopback(), "this machine has no IPv6 loopback");
        using var pair = new Pair(IPAddress.IPv6Loopback);
        pair.First.Set("a", [1]);
        Assert.Equal([1], pair.Second.Get("a", Patience, default));
    }

    [Fact]
    public void Call_ServerGone_FaultsInsteadOfHanging()
    {
        var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 8);
        using var store = Connect(server);
        store.Set("a", [1]);
        server.Dispose();
        Assert.Contains("is lost", Assert.Throws<RankFaultException>(() => store.Set("a", [2])).Message);
        Assert.Throws<RankFaultException>(() => store.Get("a", Patience, default));
    }

    [Fact]
    public void Get_ServerGoneWhileWaiting_FaultsInsteadOfHanging()
    {
        var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 8);
        using var store = Connect(server);
        using var watcher = Connect(server);
        Megatron.Testing.RankThreads.Run(2, rank =>
        {
            if (rank == 0)
            {
                store.Add("waiting", 1);
                Assert.Throws<RankFaultException>(() => store.Get("never", Patience, default));
            }
            else
            {
                watcher.Get("waiting", Patience, default);
                server.Dispose();
            }
        });
    }

    [Fact]
    public void Call_ServerDoesNotAnswer_FaultsAfterTheRequestTimeout()
    {
        using var mute = new TcpListener(IPAddress.Loopback, 0);
        mute.Start();
        var port = ((IPEndPoint)mute.LocalEndpoint).Port;
        using var store = new TcpRendezvousStore("127.0.0.1", port, Patience, TimeSpan.FromMilliseconds(100), default);
        Assert.Throws<RankFaultException>(() => store.Set("a", [1]));
    }

    [Fact]
    public void Constructor_NoServer_FaultsAfterTheConnectTimeout()
    {
        int port;
        using (var free = new TcpListener(IPAddress.Loopback, 0))
        {
            free.Start();
            port = ((IPEndPoint)free.LocalEndpoint).Port;
        }
        var fault = Assert.Throws<RankFaultException>(
            () => new TcpRendezvousStore("127.0.0.1", port, TimeSpan.FromMilliseconds(150), Patience, default));
        Assert.Contains($"127.0.0.1:{port}", fault.Message);
    }

    public static TheoryData<byte[]> Garbage => new()
    {
        Frame(int.MaxValue), // a length that nobody may allocate
        Frame(-1),
        Frame(0),
        Frame(1, 99), // unknown operation
        Frame(1, 1), // Set without fields
        Frame(6, 2, 255, 255, 255, 127, 0), // a field longer than its frame
        Frame(3, 2, 1, 0), // a field's length cut off
        "GET / HTTP/1.1\r\n\r\n"u8.ToArray(),
    };

    [Theory, MemberData(nameof(Garbage))]
    public void Server_Garbage_EndsThatConnectionOnly(byte[] bytes)
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 8);
        using var good = Connect(server);
        using (var bad = new TcpClient("127.0.0.1", server.EndPoint.Port))
        {
            bad.ReceiveTimeout = 10_000;
            bad.GetStream().Write(bytes);
            Assert.Equal(0, ReadOrReset(bad)); // closed by the server
        }
        good.Set("a", [1]);
        Assert.Equal([1], good.Get("a", Patience, default));
    }

    [Fact]
    public void Server_TooManyConnections_ClosesTheNewOnes()
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 1);
        using var first = Connect(server);
        first.Set("a", [1]);
        using var second = Connect(server);
        Assert.Throws<RankFaultException>(() => second.Set("a", [2]));
        Assert.Equal([1], first.Get("a", Patience, default));
    }

    private static byte[] Frame(int length, params byte[] body)
    {
        var frame = new byte[4 + body.Length];
        BinaryPrimitives.WriteInt32LittleEndian(frame, length);
        body.CopyTo(frame, 4);
        return frame;
    }

    private static int ReadOrReset(TcpClient client)
    {
        try
        {
            return client.GetStream().Read(new byte[16]);
        }
        catch (IOException reset) when (reset.InnerException is SocketException { SocketErrorCode: SocketError.ConnectionReset })
        {
            return 0;
        }
    }

    private static bool HasIpv6Loopback()
    {
        try
        {
            using var listener = new TcpListener(IPAddress.IPv6Loopback, 0);
            listener.Start();
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }

    private static TcpRendezvousStore Connect(TcpRendezvousServer server) =>
        new($"{server.EndPoint.Address}", server.EndPoint.Port, Patience, Patience, default);

    private sealed class Pair : IStorePair
    {
        private readonly TcpRendezvousServer server;
        private readonly TcpRendezvousStore first;
        private readonly TcpRendezvousStore second;

        public IRendezvousStore First => first;

        public IRendezvousStore Second => second;

        public Pair(IPAddress address)
        {
            server = new TcpRendezvousServer(new IPEndPoint(address, 0), 8);
            (first, second) = (Connect(server), Connect(server));
        }

        public void Dispose()
        {
            first.Dispose();
            second.Dispose();
            server.Dispose();
        }
    }
}
