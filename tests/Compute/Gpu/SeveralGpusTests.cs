using System.Diagnostics;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>What is particular to several GPUs in one process (docs/adr/0012); what they have in common with others is in <see cref="NcclProcessGroupTests"/>.</summary>
[Trait("Category", "gpu"), Collection<Alone>] // alone: it measures how long calls of the driver take
public sealed class SeveralGpusTests(ITestOutputHelper output)
{
    private const int Ranks = 2;
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(20), LongestWait = TimeSpan.FromSeconds(3);

    [Fact]
    public void Start_WhileWarmingUp_ReturnsWhenTheDeviceIsThrough() => Run((world, rank) =>
    {
        using var group = world.Create("dp", rank, [0, 1]);
        Assert.True(group.IsWarmingUp);
        var values = ones(8 << 20, dtype: float32, device: DeviceOf(rank));
        using var work = group.AllReduce(values, ReduceOp.Sum);
        Assert.True(work.IsCompleted);
        Assert.Equal(2f, values[-1].item<float>());
    });

    [Fact]
    public void Collectives_OfTwoGroupsInTurnWithWorkBetween_GiveTheSums() => Run((world, rank) =>
    {
        const int Turns = 200;
        using var first = world.Create("first", rank, [0, 1]);
        using var second = world.Create("second", rank, [0, 1]);
        (first.IsWarmingUp, second.IsWarmingUp) = (false, false);
        var (sums, factors) = (zeros(Turns, dtype: float32, device: DeviceOf(rank)), ones(512, 512, dtype: float32, device: DeviceOf(rank)));
        var works = new List<CollectiveWork>();
        for (var turn = 0; turn < Turns; turn++)
        {
            using var scope = NewDisposeScope();
            // The ranks' GPUs are busy for different times between two collectives, and none is waited for.
            for (var i = 0; i < (turn * (rank + 1)) % 5; i++) _ = factors.mm(factors);
            var part = sums.narrow(0, turn, 1);
            part.fill_(turn + rank);
            works.Add((turn % 2 == 0 ? first : second).AllReduce(part, ReduceOp.Sum));
        }
        foreach (var work in works) work.Dispose();
        float[] expected = [.. Enumerable.Range(0, Turns).Select(turn => 2f * turn + 1)];
        Assert.Equal(expected, sums.cpu().data<float>().ToArray());
    });

    /// <summary>
    /// How long calls of the driver take while an all-reduce of this process waits on GPU 0 for GPU 1. Those that wait for it are why memory and kernels are
    /// taken beforehand; how long is the driver's affair, that all comes to its end ours.
    /// </summary>
    [Fact]
    public void DriverCalls_BesideAWaitingCollective_EndAndAreTimed()
    {
        using var isWaiting = new ManualResetEventSlim();
        using var hasTried = new CountdownEvent(Ranks);
        Run((world, rank) =>
        {
            using var group = world.Create("dp", rank, [0, 1]);
            group.IsWarmingUp = false;
            var values = ones(1 << 20, dtype: float32, device: DeviceOf(rank));
            using (group.AllReduce(values, ReduceOp.Sum)) { }
            CudaDevices.Synchronize(DeviceOf(rank));
            var late = rank == 0 ? group.AllReduce(values, ReduceOp.Sum) : CollectiveWork.Completed;
            if (rank == 0) isWaiting.Set();
            else Assert.True(isWaiting.Wait(Patience));
            var tries = new Thread(() => Try(rank, hasTried)); // so that one that waits for the collective does not keep its other half away
            tries.Start();
            hasTried.Wait(LongestWait);
            if (rank == 1) late = group.AllReduce(values, ReduceOp.Sum);
            late.Dispose();
            Assert.Equal(4f, values[0].item<float>());
            Assert.True(tries.Join(Patience));
        });
    }

    private void Try(int rank, CountdownEvent hasTried)
    {
        using var scope = NewDisposeScope();
        CudaStream.MakeCurrent(rank);
        Time("a tensor of 1 GiB", () => empty(1L << 30, dtype: uint8, device: DeviceOf(rank)));
        Time("a kernel file", () => CudaKernels.Of("sgd.cu", "ELEMENT=1"));
        Time("a copy to the host", () => zeros(1 << 20, device: DeviceOf(rank)).cpu());
        hasTried.Signal();

        void Time(string what, Action action)
        {
            var start = Stopwatch.GetTimestamp();
            action();
            output.WriteLine(FormattableString.Invariant($"GPU {rank}: {what} took {Stopwatch.GetElapsedTime(start).TotalMilliseconds:F1} ms while the all-reduce waited {LongestWait.TotalSeconds} s at most"));
        }
    }

    private static Device DeviceOf(int rank) => new(TorchSharp.DeviceType.CUDA, rank);

    private static void Run(Action<NcclWorld, int> body)
    {
        Assert.SkipUnless(Megatron.Testing.Gpu.Has(Ranks), Megatron.Testing.Gpu.WhyFewerThan(Ranks));
        var store = new InProcessRendezvousStore();
        NcclWorld[] worlds = [.. Enumerable.Range(0, Ranks).Select(rank => new NcclWorld(
            store, new NcclWorldOptions { Attempt = "test/1", Device = rank, SharesProcess = true, Timeout = Patience, JoinTimeout = Patience }, TorchTestSetup.EnsureLoaded()))];
        RankThreads.Run(Ranks, rank =>
        {
            using var scope = NewDisposeScope();
            body(worlds[rank], rank);
        }, failure =>
        {
            foreach (var world in worlds) world.Abort(failure.Message);
        });
        foreach (var world in worlds) world.Dispose();
    }
}
