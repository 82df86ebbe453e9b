using System.Diagnostics;
using System.Globalization;
using System.Net;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Testing;
using Megatron.Testing.Processes;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>
/// Two processes share one GPU, which NCCL takes for two hosts (<c>NCCL_HOSTID</c>), and one of them is killed in the middle of an all-reduce.
/// Goals G1, G2 and G5: the survivor is out within 3 s, opens a new communicator in the same process within 3 s, and loses no memory.
/// </summary>
[Trait("Category", "gpu"), Collection("benchmarks")] // alone: it measures times and the memory of the whole GPU
public sealed class NcclFaultTests(ITestOutputHelper output)
{
    private const string PeerVariable = "MEGATRON_TEST_NCCL_PEER"; // port and attempt, for the peer's process
    private const int Rounds = 4;
    private static readonly TimeSpan Goal = TimeSpan.FromSeconds(3), Patience = TimeSpan.FromSeconds(60);

    [Fact]
    public async Task AllReduce_PeerIsKilled_SurvivorIsOutWithin3SecondsAndItsGpuUsable()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        Assert.SkipWhen(Environment.GetEnvironmentVariable(PeerVariable) is not null, "this process is the peer");
        UseOwnHostId("survivor");
        using var server = new TcpRendezvousServer(new IPEndPoint(IPAddress.Loopback, 0), 16);
        var used = new long[Rounds];
        for (var round = 1; round <= Rounds; round++)
        {
            await using var peer = ProgramProcess.Start(
                Environment.ProcessPath ?? "dotnet", ["exec", typeof(NcclFaultTests).Assembly.Location, "-noLogo", "-method", "*Peer_StartedByAnotherProcess*"],
                new Dictionary<string, string?> { [PeerVariable] = FormattableString.Invariant($"{server.EndPoint.Port} {round}"), ["NCCL_HOSTID"] = "peer", ["NCCL_SOCKET_IFNAME"] = "lo" });
            var (opened, released, message) = OneRound(server.EndPoint.Port, round, () => Process.GetProcessById(peer.Id).Kill());
            used[round - 1] = CudaDevices.UsedBytes();
            output.WriteLine($"round {round}: communicator {opened.TotalSeconds:F2} s, released {released.TotalSeconds:F2} s after the kill, {used[round - 1] >> 20} MiB; {message}");
            Assert.True(opened <= Goal && released <= Goal, peer.Transcript);
        }
        Assert.True(used[^1] - used[0] <= 64L << 20, $"GPU memory grew from {used[0] >> 20} to {used[^1] >> 20} MiB");
    }

    [Fact]
    public void Peer_StartedByAnotherProcess()
    {
        var order = Environment.GetEnvironmentVariable(PeerVariable)?.Split(' ');
        Assert.SkipWhen(order is null, "only as the peer of another test");
        using var scope = NewDisposeScope();
        var (store, world) = Join(int.Parse(order[0], CultureInfo.InvariantCulture), order[1]);
        store.Set($"here/{order[1]}", "1"u8);
        var group = world.Create("dp", 1, [0, 1]);
        var values = ones(8 << 20, dtype: float32, device: Megatron.Testing.Gpu.Device);
        while (true) Reduce(group, values); // until the other process ends this one
    }

    private static (TimeSpan Opened, TimeSpan Released, string Message) OneRound(int port, int round, Action kill)
    {
        using var scope = NewDisposeScope();
        var attempt = round.ToString(CultureInfo.InvariantCulture);
        var (store, world) = Join(port, attempt);
        using var closing = world;
        store.Get($"here/{attempt}", Patience, TestContext.Current.CancellationToken);
        var started = Stopwatch.GetTimestamp();
        using var group = world.Create("dp", 0, [0, 1]);
        var opened = Stopwatch.GetElapsedTime(started);
        var values = ones(8 << 20, dtype: float32, device: Megatron.Testing.Gpu.Device);
        for (var i = 0; i < 5; i++) Reduce(group, values);
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
            while (Volatile.Read(ref killed) == 0 || Stopwatch.GetElapsedTime(killed) < Patience) Reduce(group, values);
        });
        var released = Stopwatch.GetElapsedTime(Volatile.Read(ref killed));
        killer.Join();
        var usable = ones(1000, dtype: float32, device: Megatron.Testing.Gpu.Device).sum();
        Assert.Equal(1000f, usable.item<float>());
        return (opened, released, fault.Message);
    }

    private static (IRendezvousStore Store, NcclWorld World) Join(int port, string attempt)
    {
        var store = new TcpRendezvousStore("127.0.0.1", port, Patience, TimeSpan.FromSeconds(10), TestContext.Current.CancellationToken);
        return (store, new NcclWorld(
            store, new NcclWorldOptions { Attempt = $"fault/{attempt}", Device = 0, Timeout = Patience, JoinTimeout = Patience }, TorchTestSetup.EnsureLoaded()));
    }

    /// <summary>All-reduce to its end, as a step does: the result is read on the host and trusted only then.</summary>
    private static void Reduce(ProcessGroup group, Tensor values)
    {
        using var scope = NewDisposeScope();
        using (group.AllReduce(values, ReduceOp.Sum)) { }
        _ = values[0].item<float>();
        group.ThrowIfFaulted();
    }

    /// <summary>NCCL reads it once in a process, before the first communicator; .NET's own function does not reach native code.</summary>
    private static void UseOwnHostId(string name)
    {
        _ = Nccl.SetEnvironment("NCCL_HOSTID", name, 1);
        _ = Nccl.SetEnvironment("NCCL_SOCKET_IFNAME", "lo", 1);
    }
}
