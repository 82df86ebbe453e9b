using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

[Collection<Alone>]
public sealed class TcpWorldTests
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    [Fact]
    public void Create_RandomBytesAndSilentCallersOnThePort_HarmNobody()
    {
        const int Seed = 4711;
        TestContext.Current.SendDiagnosticMessage($"seed {Seed}");
        var store = new InProcessRendezvousStore();
        using var first = Open(store, "job/1", 0);
        using var second = Open(store, "job/1", 1);
        var random = new Random(Seed);
        var callers = new List<Socket>();
        for (var i = 0; i < 300; i++) // more than the port keeps at a time
        {
            var caller = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
            caller.Connect(first.EndPoint);
            var garbage = new byte[i % 3 * 97]; // none, exactly one hello, two hellos
            random.NextBytes(garbage);
            if (garbage.Length > 0 && i % 2 == 0) "MGTRTCP1"u8.CopyTo(garbage);
            caller.Send(garbage, SocketFlags.None, out _);
            callers.Add(caller);
        }
        AllReduceWorks(first, second);
        foreach (var caller in callers) caller.Dispose();
    }

    [Fact]
    public void Create_RankOfAnotherAttempt_IsRefused()
    {
        var store = new InProcessRendezvousStore();
        using var first = Open(store, "job/1", 0);
        store.Set("job/2/tcp/0", store.Get("job/1/tcp/0", Patience, default)); // the stale rank knows address and token, only its attempt is another
        using var stale = Open(store, "job/2", 1);
        var fault = Assert.Throws<RankFaultException>(() => stale.Create("tp", 1, [0, 1]));
        Assert.Equal(0, fault.CulpritRank);
        Assert.Contains("StaleAttempt", fault.Message);
        using var second = Open(store, "job/1", 1);
        AllReduceWorks(first, second);
    }

    [Fact]
    public void Create_PortNowBelongsToAnotherProcess_IsRefused()
    {
        var store = new InProcessRendezvousStore();
        using var first = Open(store, "job/1", 0);
        var published = Encoding.UTF8.GetString(store.Get("job/1/tcp/0", Patience, default)).Split(' ');
        store.Set("job/1/tcp/0", Encoding.UTF8.GetBytes($"{published[0]} {new string('0', published[1].Length)}"));
        using var second = Open(store, "job/1", 1);
        Assert.Contains("WrongRank", Assert.Throws<RankFaultException>(() => second.Create("tp", 1, [0, 1])).Message);
    }

    [Theory]
    [InlineData("")]
    [InlineData("127.0.0.1:9")]
    [InlineData("nowhere 00112233445566778899aabbccddeeff")]
    [InlineData("127.0.0.1:9 not-32-characters-of-hexadecimal!")]
    [InlineData("127.0.0.1:9 zz112233445566778899aabbccddeeff")]
    public void Create_NoAddressInTheStore_FaultNamesTheRank(string published)
    {
        var store = new InProcessRendezvousStore();
        store.Set("job/1/tcp/0", Encoding.UTF8.GetBytes(published));
        using var second = Open(store, "job/1", 1);
        var fault = Assert.Throws<RankFaultException>(() => second.Create("tp", 1, [0, 1]));
        Assert.Equal(0, fault.CulpritRank);
        Assert.Contains("is no address", fault.Message);
    }

    [Fact]
    public void Create_PeerHasDied_FaultNamesItAtOnce()
    {
        var store = new InProcessRendezvousStore();
        Open(store, "job/1", 0).Dispose();
        using var second = Open(store, "job/1", 1);
        var clock = Stopwatch.StartNew();
        Assert.Equal(0, Assert.Throws<RankFaultException>(() => second.Create("tp", 1, [0, 1])).CulpritRank);
        Assert.True(clock.Elapsed < TimeSpan.FromSeconds(5), $"took {clock.Elapsed}");
    }

    [Fact]
    public void Constructor_RankTwiceInAnAttempt_IsRefused()
    {
        var store = new InProcessRendezvousStore();
        using var first = Open(store, "job/1", 3);
        Assert.Contains("has registered already", Assert.Throws<RankFaultException>(() => Open(store, "job/1", 3)).Message);
        using var next = Open(store, "job/2", 3);
    }

    [Theory]
    [InlineData(0, 1)]
    [InlineData(1, 0)]
    public void Create_PeerNeverComes_TimesOutAndNamesIt(int present, int absent)
    {
        using var world = Open(new InProcessRendezvousStore(), "job/1", present, TimeSpan.FromMilliseconds(200));
        Assert.Equal(absent, Assert.Throws<RankFaultException>(() => world.Create("tp", present, [0, 1])).CulpritRank);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void Abort_WhileCreateWaits_ReleasesItWithinASecond(int present)
    {
        using var world = Open(new InProcessRendezvousStore(), "job/1", present);
        using var entered = new ManualResetEventSlim();
        var releasedAfter = TimeSpan.MaxValue;
        RankThreads.Run(2, thread =>
        {
            if (thread == 0)
            {
                entered.Set();
                Assert.Contains("over", Assert.Throws<RankFaultException>(() => world.Create("tp", present, [0, 1])).Message);
                return;
            }
            entered.Wait(Patience);
            var clock = Stopwatch.StartNew();
            world.Abort("over");
            releasedAfter = clock.Elapsed;
        }, limit: TimeSpan.FromSeconds(5));
        Assert.True(releasedAfter < TimeSpan.FromSeconds(1));
        Assert.Contains("over", Assert.Throws<RankFaultException>(() => world.Create("dp", present, [0, 1])).Message);
    }

    [Fact]
    public void Create_SameNameOtherMembersAndSeveralKinds_AreSeparateGroups()
    {
        var store = new InProcessRendezvousStore();
        var worlds = Enumerable.Range(0, 4).Select(rank => Open(store, "job/1", rank)).ToArray();
        RankThreads.Run(4, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var tensorParallel = worlds[rank].Create("tp", rank, rank < 2 ? [0, 1] : [2, 3]);
            using var dataParallel = worlds[rank].Create("dp", rank, rank % 2 == 0 ? [0, 2] : [1, 3]);
            using var all = worlds[rank].Create("world", rank, [0, 1, 2, 3]);
            Assert.Equal(rank < 2 ? 1 : 5, Sum(tensorParallel, rank));
            Assert.Equal(rank % 2 == 0 ? 2 : 4, Sum(dataParallel, rank));
            Assert.Equal(6, Sum(all, rank));
            all.Barrier();
        }, failure =>
        {
            foreach (var world in worlds) world.Abort(failure.Message);
        });
        foreach (var world in worlds) world.Dispose();
    }

    [Fact]
    public void Abort_OfAWorld_EndsItsGroupsOnThePeersToo()
    {
        var store = new InProcessRendezvousStore();
        using var first = Open(store, "job/1", 0);
        using var second = Open(store, "job/1", 1);
        using var joined = new ManualResetEventSlim();
        RankThreads.Run(2, rank =>
        {
            using var group = (rank == 0 ? first : second).Create("tp", rank, [0, 1]);
            group.Barrier();
            if (rank == 0)
            {
                joined.Set(); // before it, the abort could still end the first barrier
                Assert.Contains("the node drains", Assert.Throws<RankFaultException>(group.Barrier).Message);
                return;
            }
            joined.Wait(Patience);
            second.Abort("the node drains");
        });
    }

    [Fact]
    public void Join_ByTheServersEndPoint_MeetsThePeers()
    {
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 8);
        using var first = TcpWorld.Join($"tcp://127.0.0.1:{server.EndPoint.Port}", "job/3", 0, Patience, default);
        using var second = TcpWorld.Join($"tcp://localhost:{server.EndPoint.Port}/3", "job/3", 1, Patience, default);
        Assert.Equal(IPAddress.Loopback, first.EndPoint.Address);
        AllReduceWorks(first, second);
    }

    [Theory]
    [InlineData("local:job")]
    [InlineData("tcp://")]
    [InlineData("tcp://somewhere")]
    [InlineData("http://somewhere:1")]
    public void Join_NoTcpEndPoint_IsRefused(string endPoint) =>
        Assert.Contains("tcp://host:port", Assert.Throws<ArgumentException>(() => TcpWorld.Join(endPoint, "job/1", 0, Patience, default)).Message);

    private static TcpWorld Open(IRendezvousStore store, string attempt, int rank, TimeSpan? patience = null) => new(store, new TcpWorldOptions
    {
        Attempt = attempt, Rank = rank, Address = IPAddress.Loopback, Timeout = Patience, JoinTimeout = patience ?? Patience,
    });

    private static void AllReduceWorks(TcpWorld first, TcpWorld second) => RankThreads.Run(2, rank =>
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var group = (rank == 0 ? first : second).Create("tp", rank, [0, 1]);
        Assert.Equal(1, Sum(group, rank));
        group.Barrier();
    }, failure =>
    {
        first.Abort(failure.Message);
        second.Abort(failure.Message);
    });

    private static double Sum(ProcessGroup group, int rank)
    {
        var tensor = full(1, (double)rank, dtype: float64);
        using (group.AllReduce(tensor, ReduceOp.Sum)) { }
        return tensor.item<double>();
    }
}
