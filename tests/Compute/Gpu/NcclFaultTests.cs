using System.Diagnostics;
using System.Globalization;
using System.Net;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>
/// Two processes share one GPU, which NCCL takes for two hosts (<c>NCCL_HOSTID</c>), and one of them is killed in the middle of an all-reduce.
/// Goals G1, G2 and G5: the survivor is out within 3 s, opens a new communicator in the same process within 3 s, and loses no memory.
/// </summary>
[Trait("Category", "gpu"), Collection<Alone>] // alone: it measures times and the memory of the whole GPU
public sealed class NcclFaultTests(ITestOutputHelper output)
{
    private const int Rounds = 4;
    private static readonly TimeSpan Goal = TimeSpan.FromSeconds(3), Patience = TimeSpan.FromSeconds(60);

    [Fact]
    public async Task AllReduce_PeerIsKilled_SurvivorIsOutWithin3SecondsAndItsGpuUsable()
    {
        HostsOnOneGpu.Require();
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var used = new long[Rounds];
        for (var round = 1; round <= Rounds; round++)
        {
            await using var peer = HostsOnOneGpu.StartPeer(nameof(Peer_StartedByAnotherProcess), server.EndPoint.Port, round.ToString(CultureInfo.InvariantCulture));
            var (opened, released, message) = OneRound(server.EndPoint.Port, round, () => Process.GetProcessById(peer.Id).Kill());
            used[round - 1] = CudaDevices.UsedBytes();
            output.WriteLine($"round {round}: communicator {opened.TotalSeconds:F2} s, released {released.TotalSeconds:F2} s after the kill, {used[round - 1] >> 20} MiB; {message}");
            Assert.True(opened <= Goal && released <= Goal, peer.Transcript);
        }
        Assert.True(used[^1] - used[0] <= 64L << 20, $"GPU memory grew from {used[0] >> 20} to {used[^1] >> 20} MiB");
    }

    // NCCL frees a communicator when the device is idle, which it never is while the kernel of another communicator waits for the peer.
    [Fact]
    public async Task Abort_WhileKernelsOfTwoGroupsWait_ReturnsAtOnceAndEndsBoth()
    {
        HostsOnOneGpu.Require();
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        await using var peer = HostsOnOneGpu.StartPeer(nameof(SilentPeer_StartedByAnotherProcess), server.EndPoint.Port, "silent");
        using var scope = NewDisposeScope();
        var (store, world) = HostsOnOneGpu.Join(server.EndPoint.Port, "silent");
        using var closing = world;
        store.Get("here/silent", Patience, TestContext.Current.CancellationToken);
        using ProcessGroup first = world.Create("first", 0, [0, 1]), second = world.Create("second", 0, [0, 1]);
        CollectiveWork[] waiting = [.. new[] { first, second }.Select(group => group.AllReduce(ones(1000, dtype: float32, device: Megatron.Testing.Gpu.Device), ReduceOp.Sum))];
        var started = Stopwatch.GetTimestamp();
        world.Abort("the test says so");
        Assert.InRange(Stopwatch.GetElapsedTime(started), TimeSpan.Zero, TimeSpan.FromSeconds(1));
        foreach (var work in waiting) Assert.Throws<RankFaultException>(work.Wait);
        CudaDevices.Synchronize(Megatron.Testing.Gpu.Device);
        Assert.InRange(Stopwatch.GetElapsedTime(started), TimeSpan.Zero, Goal);
    }

    [Fact]
    public void SilentPeer_StartedByAnotherProcess()
    {
        Assert.SkipWhen(HostsOnOneGpu.PeerOrder is null, "only as the peer of another test");
        var (port, attempt) = HostsOnOneGpu.PeerOrder.Value;
        var (store, world) = HostsOnOneGpu.Join(port, attempt);
        store.Set($"here/{attempt}", "1"u8);
        using ProcessGroup first = world.Create("first", 1, [0, 1]), second = world.Create("second", 1, [0, 1]);
        new ManualResetEventSlim().Wait(TestContext.Current.CancellationToken); // until the other process ends this one
    }

    [Fact]
    public void Peer_StartedByAnotherProcess()
    {
        Assert.SkipWhen(HostsOnOneGpu.PeerOrder is null, "only as the peer of another test");
        var (port, attempt) = HostsOnOneGpu.PeerOrder.Value;
        using var scope = NewDisposeScope();
        var (store, world) = HostsOnOneGpu.Join(port, attempt);
        store.Set($"here/{attempt}", "1"u8);
        var group = world.Create("dp", 1, [0, 1]);
        var values = ones(8 << 20, dtype: float32, device: Megatron.Testing.Gpu.Device);
        while (true) HostsOnOneGpu.Reduce(group, values); // until the other process ends this one
    }

    private static (TimeSpan Opened, TimeSpan Released, string Message) OneRound(int port, int round, Action kill)
    {
        using var scope = NewDisposeScope();
        var attempt = round.ToString(CultureInfo.InvariantCulture);
        var (store, world) = HostsOnOneGpu.Join(port, attempt);
        using var closing = world;
        store.Get($"here/{attempt}", Patience, TestContext.Current.CancellationToken);
        var started = Stopwatch.GetTimestamp();
        using var group = world.Create("dp", 0, [0, 1]);
        var opened = Stopwatch.GetElapsedTime(started);
        var values = ones(8 << 20, dtype: float32, device: Megatron.Testing.Gpu.Device);
        for (var i = 0; i < 5; i++) HostsOnOneGpu.Reduce(group, values);
        Assert.Equal(32f, values[0].item<float>());
        var killed = 0L;
        var killer = new Thread(() =>
        {
            kill();
            Volatile.Write(ref killed, Stopwatch.GetTimestamp());
        });
        killer.Start();
        var fault = Assert.Throws<RankFaultException>(() =>
        {
            while (Volatile.Read(ref killed) == 0 || Stopwatch.GetElapsedTime(killed) < Patience) HostsOnOneGpu.Reduce(group, values);
        });
        var released = Stopwatch.GetElapsedTime(Volatile.Read(ref killed));
        killer.Join();
        var usable = ones(1000, dtype: float32, device: Megatron.Testing.Gpu.Device).sum();
        Assert.Equal(1000f, usable.item<float>());
        return (opened, released, fault.Message);
    }
}
