using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text;
using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>Of two ranks on one GPU one computes longer: the time in which the other waits for it is counted there, and not on the late one.</summary>
[Trait("Category", "gpu"), Collection("benchmarks")] // alone: it compares times
public sealed class NcclBlockedTimeTests(ITestOutputHelper output)
{
    private const int Late = 1, NumProducts = 200, Side = 4096;
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(60);

    [Fact]
    public async Task BlockedTime_OneRankComputesLonger_CountsOnTheOtherOnly()
    {
        HostsOnOneGpu.Require();
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        await using var peer = HostsOnOneGpu.StartPeer(nameof(LateRank_StartedByAnotherProcess), server.EndPoint.Port, "late");
        var (step, blocked, ofLate) = Step(server.EndPoint.Port, "late", 0);
        output.WriteLine($"step {step.TotalMilliseconds:F1} ms, waited {blocked.TotalMilliseconds:F1} ms, the late rank {ofLate.TotalMilliseconds:F1} ms");
        Assert.InRange(blocked, step / 2, step); // it did nothing else
        Assert.InRange(ofLate, TimeSpan.Zero, blocked / 2);
    }

    [Fact]
    public void LateRank_StartedByAnotherProcess()
    {
        Assert.SkipWhen(HostsOnOneGpu.PeerOrder is null, "only as the peer of another test");
        var (port, attempt) = HostsOnOneGpu.PeerOrder.Value;
        Step(port, attempt, Late);
    }

    /// <summary>A step after one that made everything ready; returns its time, this rank's wait in it and the other one's.</summary>
    private static (TimeSpan Time, TimeSpan Blocked, TimeSpan OfOther) Step(int port, string attempt, int rank)
    {
        using var scope = NewDisposeScope();
        var (store, world) = HostsOnOneGpu.Join(port, attempt);
        using var closing = world;
        using var group = world.Create("dp", rank, [0, 1]);
        var values = ones(1 << 10, dtype: float32, device: Megatron.Testing.Gpu.Device);
        var matrix = ones([Side, Side], dtype: float32, device: Megatron.Testing.Gpu.Device);
        Compute(matrix, 1);
        HostsOnOneGpu.Reduce(group, values);
        group.Barrier();
        var (start, before) = (Stopwatch.GetTimestamp(), group.BlockedTime);
        if (rank == Late) Compute(matrix, NumProducts);
        HostsOnOneGpu.Reduce(group, values);
        var (time, blocked) = (Stopwatch.GetElapsedTime(start), group.BlockedTime - before);
        store.Set($"blocked/{rank}", Encoding.ASCII.GetBytes(blocked.Ticks.ToString(CultureInfo.InvariantCulture)));
        var other = store.Get($"blocked/{1 - rank}", patience, TestContext.Current.CancellationToken);
        return (time, blocked, TimeSpan.FromTicks(long.Parse(Encoding.ASCII.GetString(other), CultureInfo.InvariantCulture)));
    }

    private static void Compute(Tensor matrix, int numProducts)
    {
        for (var i = 0; i < numProducts; i++) matrix.mm(matrix).Dispose();
    }
}
