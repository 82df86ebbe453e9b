using System.Net;
using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

[Collection<Alone>]
public sealed class TcpProcessGroupTests : ProcessGroupContract
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    protected override IContractWorld CreateWorld(int size, TimeSpan timeout) => new TcpTestWorld(size, timeout);

    [Fact]
    public void AllReduce_OtherShapeOnAPeer_FaultNamesBothCalls()
    {
        var fault = Mismatch(
            group => group.AllReduce(ones(4), ReduceOp.Sum), group => group.AllReduce(ones(5), ReduceOp.Sum));
        Assert.Contains("rank 0 (global 0) called all_reduce(Float32[4], Sum)", fault.Message);
        Assert.Contains("rank 1 (global 1) called all_reduce(Float32[5], Sum)", fault.Message);
    }

    [Fact]
    public void AllReduce_OtherDtypeOnAPeer_FaultNamesBothCalls()
    {
        var fault = Mismatch(
            group => group.AllReduce(ones(4), ReduceOp.Sum), group => group.AllReduce(ones(4, dtype: bfloat16), ReduceOp.Sum));
        Assert.Contains("all_reduce(Float32[4], Sum)", fault.Message);
        Assert.Contains("all_reduce(BFloat16[4], Sum)", fault.Message);
    }

    [Fact]
    public void AllReduce_OtherOperationOnAPeer_FaultNamesBothCalls()
    {
        var fault = Mismatch(group => group.AllReduce(ones(4), ReduceOp.Sum), group => group.Broadcast(ones(4), 0));
        Assert.Contains("all_reduce(Float32[4], Sum)", fault.Message);
        Assert.Contains("broadcast(Float32[4], root 0)", fault.Message);
    }

    [Fact]
    public void Receive_OtherSizeThanSent_FaultNamesBothSizes()
    {
        var fault = Mismatch(group => group.Send(ones(4), 1), group => group.Receive(zeros(3), 0));
        Assert.Contains("Float32 x 4", fault.Message);
        Assert.Contains("Float32 x 3", fault.Message);
    }

    [Fact]
    public void AllToAll_SplitsDisagree_FaultNamesRowCounts()
    {
        var fault = Mismatch(
            group => group.AllToAll(zeros(2, 1), ones(3, 1), [1, 1], [1, 2]), group => group.AllToAll(zeros(2, 1), ones(2, 1), [1, 1], [1, 1]));
        Assert.Contains("rank 0 sends 2 rows to rank 1, which expects 1", fault.Message);
    }

    [Theory]
    [InlineData(2, ScalarType.Float32)]
    [InlineData(3, ScalarType.Float32)]
    [InlineData(4, ScalarType.Float32)]
    [InlineData(3, ScalarType.BFloat16)]
    [InlineData(4, ScalarType.Float16)]
    public void EveryReduction_LargeRandom_HasTheBitsOfLoopback(int size, ScalarType dtype)
    {
        const int Seed = 77;
        TestContext.Current.SendDiagnosticMessage($"seed {Seed}");
        var expected = Reduced(new LoopbackTestWorld(size, Patience), size, dtype, Seed);
        var actual = Reduced(new TcpTestWorld(size, Patience), size, dtype, Seed);
        for (var rank = 0; rank < size; rank++) Assert.Equal(expected[rank], actual[rank]);
    }

    [Fact]
    public void Broadcast_SeveralSlicesFromEachRoot_ArriveWhole()
    {
        using var world = new TcpTestWorld(3, Patience);
        RankThreads.Run(3, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            for (var root = 0; root < 3; root++)
            {
                // 2.5 slices of 1 MiB and some bytes
                var tensor = rank == root ? arange(655_363, dtype: int32) + root : zeros(655_363, dtype: int32);
                using (world.Groups[rank].Broadcast(tensor, root)) { }
                Assert.True(tensor.eq(arange(655_363, dtype: int32) + root).all().item<bool>());
            }
        }, failure => world.Groups[0].Abort(failure.Message));
    }

    [Fact]
    public void SendReceive_LargeBothWaysWhileCollectivesRun_NoneWaitsForTheOther()
    {
        using var world = new TcpTestWorld(2, Patience);
        RankThreads.Run(2, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            var group = world.Groups[rank];
            var received = zeros(8 << 20, dtype: float32); // 32 MiB: more than the sockets buffer
            var sum = ones(1 << 20, dtype: float32);
            using var send = group.Send(full(8 << 20, rank + 1.0, dtype: float32), 1 - rank);
            using (group.AllReduce(sum, ReduceOp.Sum)) { }
            group.Barrier();
            using (group.Receive(received, 1 - rank)) { }
            Assert.Equal(2f - rank, received.min().item<float>());
            Assert.Equal(2f - rank, received.max().item<float>());
            Assert.Equal(2f, sum.max().item<float>());
        }, failure => world.Groups[0].Abort(failure.Message));
    }

    [Fact]
    public void AllReduce_EmptyAndSingleElement_Work()
    {
        using var world = new TcpTestWorld(4, Patience);
        RankThreads.Run(4, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using (world.Groups[rank].AllReduce(zeros(0, dtype: float32), ReduceOp.Sum)) { }
            var one = full([], rank + 1.0, dtype: float32);
            using (world.Groups[rank].AllReduce(one, ReduceOp.Sum)) { }
            Assert.Equal(10f, one.item<float>());
        }, failure => world.Groups[0].Abort(failure.Message));
    }

    [Fact]
    public void Wait_AbortedInTheMiddleOfALargeTransfer_ReturnsWithinASecond()
    {
        using var world = new TcpTestWorld(2, Patience);
        using var started = new ManualResetEventSlim();
        var releasedAfter = TimeSpan.MaxValue;
        RankThreads.Run(2, rank =>
        {
            using var scope = NewDisposeScope();
            if (rank == 1)
            {
                started.Wait(Patience);
                world.Groups[1].Abort("enough"); // it has never received
                return;
            }
            var work = world.Groups[0].Send(zeros(16 << 20, dtype: float32), 1);
            started.Set();
            var clock = System.Diagnostics.Stopwatch.StartNew();
            Assert.Contains("enough", Assert.Throws<RankFaultException>(work.Wait).Message);
            releasedAfter = clock.Elapsed;
        });
        Assert.True(releasedAfter < TimeSpan.FromSeconds(1), $"released after {releasedAfter}");
    }

    [Fact]
    public void Dispose_AfterTheLastOperation_DoesNotDisturbSlowerPeers()
    {
        for (var round = 0; round < 10; round++)
        {
            using var world = new TcpTestWorld(3, Patience);
            RankThreads.Run(3, rank =>
            {
                using var scope = NewDisposeScope();
                var tensor = ones(300_000, dtype: float32);
                using (world.Groups[rank].AllReduce(tensor, ReduceOp.Sum)) { }
                using (world.Groups[rank].Broadcast(tensor, 0)) { }
                world.Groups[rank].Dispose();
                Assert.Equal(3f, tensor.max().item<float>());
            }, failure => world.Groups[0].Abort(failure.Message));
        }
    }

    /// <summary>Results of an all-reduce and a reduce-scatter over several slices, by rank, as fp64.</summary>
    private static double[][] Reduced(IContractWorld world, int size, ScalarType dtype, int seed)
    {
        var results = new double[size][];
        using (world)
            RankThreads.Run(size, rank =>
            {
                using var leaks = LeakCheck.Start();
                using var scope = NewDisposeScope();
                using var generator = new Generator((ulong)(seed + rank));
                var whole = randn(1_000_003, generator: generator).to_type(dtype);
                using (world.Groups[rank].AllReduce(whole, ReduceOp.Average)) { }
                var parts = randn(size * 300_001L, generator: generator).to_type(dtype);
                var own = empty(300_001, dtype: dtype);
                using (world.Groups[rank].ReduceScatter(own, parts, ReduceOp.Sum)) { }
                results[rank] = cat([whole, own]).to_type(float64).data<double>().ToArray();
            }, failure => world.Groups[0].Abort(failure.Message));
        return results;
    }

    private static RankFaultException Mismatch(Func<ProcessGroup, CollectiveWork> onFirst, Func<ProcessGroup, CollectiveWork> onSecond)
    {
        using var world = new TcpTestWorld(2, Patience);
        var faults = new RankFaultException[2];
        RankThreads.Run(2, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            faults[rank] = Assert.Throws<RankFaultException>(() => (rank == 0 ? onFirst : onSecond)(world.Groups[rank]).Wait());
        }, failure => world.Groups[0].Abort(failure.Message));
        Assert.Equal(faults[0].Message, faults[1].Message);
        return faults[0];
    }

    private sealed class LoopbackTestWorld : IContractWorld
    {
        public IReadOnlyList<ProcessGroup> Groups { get; }

        public LoopbackTestWorld(int size, TimeSpan timeout)
        {
            var world = new LoopbackWorld(timeout);
            int[] members = [.. Enumerable.Range(0, size)];
            Groups = [.. members.Select(rank => world.Create("test", rank, members))];
        }

        public void Dispose()
        {
            foreach (var group in Groups) group.Dispose();
        }
    }
}

/// <summary>Ranks that are threads of this process and talk over the loopback address.</summary>
internal sealed class TcpTestWorld : IContractWorld
{
    private readonly TcpWorld[] worlds;

    public IReadOnlyList<ProcessGroup> Groups { get; }

    public TcpTestWorld(int size, TimeSpan timeout)
    {
        var store = new InProcessRendezvousStore();
        worlds = [.. Enumerable.Range(0, size).Select(rank => new TcpWorld(
            store, new TcpWorldOptions { Attempt = "test/1", Rank = rank, Address = IPAddress.Loopback, Timeout = timeout, JoinTimeout = TimeSpan.FromSeconds(30) }))];
        var groups = new ProcessGroup[size];
        int[] members = [.. Enumerable.Range(0, size)];
        RankThreads.Run(size, rank => groups[rank] = size == 1 ? new SingleRankGroup("test", 0) : worlds[rank].Create("test", rank, members));
        Groups = groups;
    }

    public void Dispose()
    {
        foreach (var group in Groups) group.Dispose();
        foreach (var world in worlds) world.Dispose();
    }
}
