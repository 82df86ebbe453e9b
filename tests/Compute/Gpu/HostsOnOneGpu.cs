using System.Globalization;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Testing;
using Megatron.Testing.Processes;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>Two processes that share one GPU and pose as two hosts to NCCL: this one, and one that runs a test of this assembly.</summary>
internal static class HostsOnOneGpu
{
    private const string PeerVariable = "MEGATRON_TEST_NCCL_PEER"; // port and attempt, for the peer's process
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(60);

    /// <summary>What the peer's process was started for: the port of the rendezvous and the attempt; null in every other process.</summary>
    public static (int Port, string Attempt)? PeerOrder => Environment.GetEnvironmentVariable(PeerVariable)?.Split(' ') is [var port, var attempt]
        ? (int.Parse(port, CultureInfo.InvariantCulture), attempt) : null;

    /// <summary>Skips the test where it cannot run, and makes this process a host of its own.</summary>
    public static void Require()
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        Assert.SkipWhen(PeerOrder is not null, "this process is the peer");
        // NCCL reads it once in a process, before the first communicator; .NET's own function does not reach native code.
        _ = Nccl.SetEnvironment("NCCL_HOSTID", "first", 1);
        _ = Nccl.SetEnvironment("NCCL_SOCKET_IFNAME", "lo", 1);
    }

    /// <summary>Starts the other process.</summary>
    /// <param name="method">Its test, which does nothing without a <see cref="PeerOrder"/>.</param>
    public static ProgramProcess StartPeer(string method, int port, string attempt) => ProgramProcess.Start(
        Environment.ProcessPath ?? "dotnet", ["exec", typeof(HostsOnOneGpu).Assembly.Location, "-noLogo", "-method", $"*{method}*"],
        new Dictionary<string, string?> { [PeerVariable] = FormattableString.Invariant($"{port} {attempt}"), ["NCCL_HOSTID"] = "peer", ["NCCL_SOCKET_IFNAME"] = "lo" });

    /// <summary>This process's end of an attempt.</summary>
    public static (IRendezvousStore Store, NcclWorld World) Join(int port, string attempt)
    {
        var store = new TcpRendezvousStore("127.0.0.1", port, patience, TimeSpan.FromSeconds(10), TestContext.Current.CancellationToken);
        return (store, new NcclWorld(
            store, new NcclWorldOptions { Attempt = $"hosts/{attempt}", Device = 0, Timeout = patience, JoinTimeout = patience }, TorchTestSetup.EnsureLoaded()));
    }

    /// <summary>All-reduce to its end, as a step does: the result is read on the host and trusted only then.</summary>
    public static void Reduce(ProcessGroup group, Tensor values)
    {
        using var scope = NewDisposeScope();
        using (group.AllReduce(values, ReduceOp.Sum)) { }
        _ = values[0].item<float>();
        group.ThrowIfFaulted();
    }
}
