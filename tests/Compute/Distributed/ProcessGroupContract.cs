using System.Diagnostics;
using Megatron.Compute.Distributed;
using Megatron.Testing;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

/// <summary>
/// What every backend of <see cref="ProcessGroup"/> must do. A backend's test class derives from this, opens the groups and adds nothing
/// else that is general.
/// </summary>
public abstract class ProcessGroupContract
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    [ThreadStatic] private static Device? device; // of the rank whose thread this is

    public static TheoryData<int> Sizes => [1, 2, 3, 4];

    public static TheoryData<int> SizesWithPeers => [2, 3, 4];

    public static TheoryData<int, ScalarType> SizesAndDtypes
    {
        get
        {
            var data = new TheoryData<int, ScalarType>();
            foreach (var size in (int[])[1, 2, 3, 4])
                foreach (var dtype in (ScalarType[])[
                    ScalarType.BFloat16, ScalarType.Float16, ScalarType.Float32, ScalarType.Float64, ScalarType.Int32, ScalarType.Int64])
                    data.Add(size, dtype);
            return data;
        }
    }

    /// <summary>Where the tensors of a rank live.</summary>
    protected virtual Device DeviceOf(int rank) => CPU;

    /// <summary>A fresh world of <paramref name="size"/> ranks whose operations give up after <paramref name="timeout"/>.</summary>
    protected abstract IContractWorld CreateWorld(int size, TimeSpan timeout);

    [Theory, MemberData(nameof(SizesAndDtypes))]
    public void AllReduce_SumAndMax_EqualOracle(int size, ScalarType dtype) => Run(size, group =>
    {
        // Small whole numbers: exact in every dtype, so the result does not depend on the backend's order.
        var sum = Ramp(5, group.Rank).to_type(dtype);
        using (group.AllReduce(sum, ReduceOp.Sum)) { }
        AssertValues([.. Enumerable.Range(0, 5).Select(i => Enumerable.Range(0, size).Sum(rank => RampValue(i, rank)))], sum);
        var max = Ramp(5, group.Rank).to_type(dtype);
        using (group.AllReduce(max, ReduceOp.Max)) { }
        AssertValues([.. Enumerable.Range(0, 5).Select(i => Enumerable.Range(0, size).Max(rank => RampValue(i, rank)))], max);
    });

    [Theory, MemberData(nameof(Sizes))]
    public void AllReduce_Average_DividesBySize(int size) => Run(size, group =>
    {
        var tensor = Full(7, group.Rank + 1.0, dtype: float32);
        using (group.AllReduce(tensor, ReduceOp.Average)) { }
        AssertValues([.. Enumerable.Repeat((size + 1) / 2.0, 7)], tensor);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void AllReduce_AverageOfIntegers_IsRefused(int size) => Run(size, group =>
        Assert.Throws<InvalidOperationException>(() => group.AllReduce(Ones(3, dtype: int64), ReduceOp.Average)));

    [Theory, MemberData(nameof(Sizes))]
    public void AllReduce_Bf16Random_StaysNearFp32Oracle(int size)
    {
        const int Count = 10_000;
        using var leaks = LeakCheck.Start();
        var inputs = Enumerable.Range(0, size).Select(rank => RandomInput(rank, Count, ScalarType.BFloat16)).ToArray();
        Run(size, group =>
        {
            var tensor = Values(inputs[group.Rank]).to_type(ScalarType.BFloat16);
            using (group.AllReduce(tensor, ReduceOp.Sum)) { }
            AssertSameOnEveryRank(group, tensor);
            var result = Read(tensor);
            for (var i = 0; i < Count; i++)
            {
                var terms = inputs.Select(input => input[i]).ToArray();
                // 2^-8 per rounding, roundings adding up like a random walk over the ranks; relative to the size of the terms.
                var bound = Math.Pow(2, -8) * Math.Sqrt(size) * terms.Sum(Math.Abs) + 1e-30;
                Assert.True(Math.Abs(result[i] - terms.Sum()) <= bound, $"element {i}: {result[i]} for {terms.Sum()}");
            }
        });
    }

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void AllReduce_Fp32Random_HasSameBitsOnEveryRankAndRun(int size)
    {
        var results = new double[]?[size];
        for (var run = 0; run < 3; run++)
            Run(size, group =>
            {
                var tensor = Values(RandomInput(group.Rank, 4_097, ScalarType.Float32)).to_type(ScalarType.Float32);
                using (group.AllReduce(tensor, ReduceOp.Sum)) { }
                AssertSameOnEveryRank(group, tensor);
                var result = Read(tensor);
                Assert.Equal(results[group.Rank] ?? result, result);
                results[group.Rank] = result;
            });
    }

    [Theory, MemberData(nameof(SizesAndDtypes))]
    public void AllGather_EveryDtype_ConcatenatesInRankOrder(int size, ScalarType dtype) => Run(size, group =>
    {
        var input = Ramp(6, group.Rank).to_type(dtype).view(2, 3);
        var output = Zeros(2 * size, 3, dtype: dtype);
        using (group.AllGather(output, input)) { }
        AssertValues([.. Enumerable.Range(0, size).SelectMany(rank => Enumerable.Range(0, 6).Select(i => RampValue(i, rank)))], output);
    });

    [Theory, MemberData(nameof(Sizes))]
    public void AllGather_InputInsideOutput_Works(int size) => Run(size, group =>
    {
        var output = Full(size * 4, -1.0, dtype: float32);
        var own = output.narrow(0, group.Rank * 4, 4);
        own.fill_(group.Rank);
        using (group.AllGather(output, own)) { }
        AssertValues([.. Enumerable.Range(0, size * 4).Select(i => (double)(i / 4))], output);
    });

    [Theory, MemberData(nameof(SizesAndDtypes))]
    public void ReduceScatter_EveryDtype_LeavesOwnPart(int size, ScalarType dtype) => Run(size, group =>
    {
        var input = Ramp(3 * size, group.Rank).to_type(dtype);
        var output = Zeros(3, dtype: dtype);
        using (group.ReduceScatter(output, input, ReduceOp.Sum)) { }
        AssertValues([.. Enumerable.Range(3 * group.Rank, 3).Select(i => Enumerable.Range(0, size).Sum(rank => RampValue(i, rank)))], output);
    });

    [Theory, MemberData(nameof(Sizes))]
    public void ReduceScatter_OutputInsideInput_KeepsTheRest(int size) => Run(size, group =>
    {
        var input = Full(size * 2, group.Rank + 1.0, dtype: float32);
        using (group.ReduceScatter(input.narrow(0, group.Rank * 2, 2), input, ReduceOp.Sum)) { }
        AssertValues([.. Enumerable.Range(0, size * 2).Select(i => i / 2 == group.Rank ? size * (size + 1) / 2.0 : group.Rank + 1.0)], input);
    });

    [Theory, MemberData(nameof(SizesAndDtypes))]
    public void AllToAll_UnevenSplits_DeliversRowsInRankOrder(int size, ScalarType dtype) => Run(size, group =>
    {
        // Rank s sends (s + t) mod 3 rows to rank t: some pairs exchange nothing.
        long Rows(int source, int target) => (source + target) % 3;
        long[] inputSplits = [.. Enumerable.Range(0, size).Select(target => Rows(group.Rank, target))];
        long[] outputSplits = [.. Enumerable.Range(0, size).Select(source => Rows(source, group.Rank))];
        var sent = Enumerable.Range(0, size).SelectMany(target => Enumerable.Repeat(10.0 * group.Rank + target, (int)Rows(group.Rank, target) * 2));
        var input = Values(sent.ToArray()).to_type(dtype).view(inputSplits.Sum(), 2);
        var output = Zeros(outputSplits.Sum(), 2, dtype: dtype);
        using (group.AllToAll(output, input, outputSplits, inputSplits)) { }
        AssertValues([.. Enumerable.Range(0, size).SelectMany(source => Enumerable.Repeat(10.0 * source + group.Rank, (int)Rows(source, group.Rank) * 2))], output);
    });

    [Theory, MemberData(nameof(SizesAndDtypes))]
    public void Broadcast_EveryRoot_CopiesItsValues(int size, ScalarType dtype) => Run(size, group =>
    {
        for (var root = 0; root < size; root++)
        {
            var tensor = Ramp(4, group.Rank).to_type(dtype);
            using (group.Broadcast(tensor, root)) { }
            AssertValues([.. Enumerable.Range(0, 4).Select(i => RampValue(i, root))], tensor);
        }
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void SendReceive_RingOfSeveralMessages_KeepsOrder(int size) => Run(size, group =>
    {
        var (next, previous) = ((group.Rank + 1) % size, (group.Rank + size - 1) % size);
        var received = Enumerable.Range(0, 3).Select(_ => Zeros(8, dtype: float32)).ToArray();
        var works = new List<CollectiveWork>();
        for (var i = 0; i < 3; i++) works.Add(group.Send(Full(8, 100.0 * group.Rank + i, dtype: float32), next));
        for (var i = 0; i < 3; i++) works.Add(group.Receive(received[i], previous));
        foreach (var work in works) work.Dispose();
        for (var i = 0; i < 3; i++) AssertValues([.. Enumerable.Repeat(100.0 * previous + i, 8)], received[i]);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Collectives_StartedTogether_CompleteInAnyOrderOfWaits(int size) => Run(size, group =>
    {
        var first = Full(3, 1.0, dtype: float32);
        var second = Full(5, 2.0, dtype: float32);
        var gathered = Zeros(size, dtype: int64);
        var works = new[] { group.AllReduce(first, ReduceOp.Sum), group.AllReduce(second, ReduceOp.Sum), group.AllGather(gathered, Full(1, (long)group.Rank, dtype: int64)) };
        foreach (var work in group.Rank % 2 == 0 ? works : works.Reverse()) work.Wait();
        foreach (var work in works) work.Dispose();
        AssertValues([.. Enumerable.Repeat((double)size, 3)], first);
        AssertValues([.. Enumerable.Repeat(2.0 * size, 5)], second);
        AssertValues([.. Enumerable.Range(0, size).Select(rank => (double)rank)], gathered);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Start_PeerNotThereYet_ReturnsAtOnceAndWaitCompletesIt(int size)
    {
        using var hasStarted = new CountdownEvent(size - 1);
        Run(size, group =>
        {
            if (group.Rank == size - 1) Assert.True(hasStarted.Wait(Patience)); // the others' calls have returned without this rank
            var tensor = Full(1_000, group.Rank + 1.0, dtype: float32);
            using var work = group.AllReduce(tensor, ReduceOp.Sum);
            if (group.Rank < size - 1)
            {
                Assert.False(work.IsCompleted);
                hasStarted.Signal();
            }
            work.Wait();
            AssertValues([.. Enumerable.Repeat(size * (size + 1) / 2.0, 1_000)], tensor); // reads on the host: a device backend is through with it then
            Assert.True(work.IsCompleted);
            work.Wait();
        });
    }

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Start_OnResultOfTheCallBefore_NeedsNoWaitBetween(int size) => Run(size, group =>
    {
        var whole = Full(4 * size, group.Rank + 1.0, dtype: float32);
        var own = Zeros(4, dtype: float32);
        var works = new[]
        {
            group.AllReduce(whole, ReduceOp.Sum), group.ReduceScatter(own, whole, ReduceOp.Sum), group.AllReduce(own, ReduceOp.Max), group.AllGather(whole, own),
        };
        foreach (var work in works) work.Dispose();
        AssertValues([.. Enumerable.Repeat(size * size * (size + 1) / 2.0, 4 * size)], whole);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Start_CallerFreesItsTensors_ResultIsRight(int size) => Run(size, group =>
    {
        var output = Zeros(size * 1_000, dtype: float32);
        CollectiveWork work;
        using (var input = Full(1_000, group.Rank + 1.0, dtype: float32))
        using (var view = output.view(size, 1_000)) work = group.AllGather(view, input);
        work.Dispose();
        AssertValues([.. Enumerable.Range(0, size * 1_000).Select(i => i / 1_000 + 1.0)], output);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void SendReceive_LargeBothWaysSendFirst_PassEachOther(int size) => Run(size, group =>
    {
        const long Count = 1 << 20; // 4 MiB: more than any buffer on the way
        var (next, previous) = ((group.Rank + 1) % size, (group.Rank + size - 1) % size);
        var (fromPrevious, fromNext) = (Zeros(Count, dtype: float32), Zeros(Count, dtype: float32));
        var works = new List<CollectiveWork>
        {
            group.Send(Full(Count, group.Rank + 1.0, dtype: float32), next), group.Send(Full(Count, group.Rank + 11.0, dtype: float32), previous),
        };
        // With two ranks both messages come from the same peer, in its order.
        works.Add(group.Receive(size == 2 ? fromPrevious : fromNext, next));
        works.Add(group.Receive(size == 2 ? fromNext : fromPrevious, previous));
        foreach (var work in works) work.Dispose();
        Assert.Equal((previous + 1.0, next + 11.0), (fromPrevious.min().item<float>(), fromNext.min().item<float>()));
        Assert.Equal((previous + 1.0, next + 11.0), (fromPrevious.max().item<float>(), fromNext.max().item<float>()));
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Send_NotReceivedYet_HoldsUpNoCollective(int size) => Run(size, group =>
    {
        var message = Full(1 << 20, 5.0, dtype: float32);
        var sent = group.Rank == 0 ? group.Send(message, size - 1) : CollectiveWork.Completed;
        var sum = Ones(8, dtype: float32);
        using (group.AllReduce(sum, ReduceOp.Sum)) { }
        if (group.Rank == size - 1)
        {
            var received = Zeros(1 << 20, dtype: float32);
            using (group.Receive(received, 0)) { }
            Assert.Equal(5f, received.min().item<float>());
        }
        sent.Dispose();
        AssertValues([.. Enumerable.Repeat((double)size, 8)], sum);
    });

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Barrier_ReturnsOnlyAfterAllCalled(int size)
    {
        var entered = 0;
        Run(size, group =>
        {
            for (var round = 1; round <= 5; round++)
            {
                Interlocked.Increment(ref entered);
                group.Barrier();
                Assert.True(Volatile.Read(ref entered) >= round * size);
                group.Barrier();
            }
        });
    }

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Abort_FromAnotherThread_ReleasesEveryCallerWithinASecond(int size)
    {
        using var world = CreateWorld(size, Patience);
        var releasedAfter = new TimeSpan[size];
        using var waiting = new CountdownEvent(size - 1);
        var aborted = 0L;
        var aborter = new Thread(() =>
        {
            waiting.Wait(Patience);
            Volatile.Write(ref aborted, Stopwatch.GetTimestamp());
            world.Groups[0].Abort("the test says so");
        });
        aborter.Start();
        RunRanks(size, rank =>
        {
            device = DeviceOf(rank);
            if (rank == size - 1) return; // never comes: the others hang until the abort
            using var scope = NewDisposeScope();
            var tensor = Ones(4);
            var work = world.Groups[rank].AllReduce(tensor, ReduceOp.Sum);
            waiting.Signal();
            var fault = Assert.Throws<RankFaultException>(() => Finish(world.Groups[rank], work, tensor));
            releasedAfter[rank] = Stopwatch.GetElapsedTime(Volatile.Read(ref aborted));
            Assert.Contains("the test says so", fault.Message);
            Assert.Throws<RankFaultException>(() => AllReduceToTheEnd(world.Groups[rank]));
        });
        aborter.Join();
        Assert.All(releasedAfter, time => Assert.True(time < TimeSpan.FromSeconds(1), $"released after {time}"));
    }

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Wait_PeerNeverComes_TimesOutAndNamesIt(int size)
    {
        using var world = CreateWorld(size, TimeSpan.FromMilliseconds(200));
        RunRanks(size, rank =>
        {
            device = DeviceOf(rank);
            if (rank == size - 1) return;
            using var scope = NewDisposeScope();
            var fault = Assert.Throws<RankFaultException>(() => AllReduceToTheEnd(world.Groups[rank]));
            Assert.Equal(size - 1, fault.CulpritRank);
        });
    }

    [Theory, MemberData(nameof(SizesWithPeers))]
    public void Dispose_RankLeavesEarly_PeersGetAFaultThatNamesIt(int size)
    {
        using var world = CreateWorld(size, Patience);
        RunRanks(size, rank =>
        {
            device = DeviceOf(rank);
            if (rank == size - 1)
            {
                world.Groups[rank].Dispose();
                return;
            }
            using var scope = NewDisposeScope();
            var fault = Assert.Throws<RankFaultException>(() => AllReduceToTheEnd(world.Groups[rank]));
            Assert.Equal(size - 1, fault.CulpritRank);
        });
    }

    [Fact]
    public void Volume_OneOfEach_EqualsFormulas() => Run(4, group =>
    {
        group.Volume.Reset();
        using (group.AllReduce(Ones(8), ReduceOp.Sum)) { }
        using (group.AllGather(Zeros(8), Ones(2))) { }
        using (group.ReduceScatter(Zeros(2), Ones(8), ReduceOp.Sum)) { }
        using (group.AllToAll(Zeros(4, 3), Ones(4, 3), [1, 1, 1, 1], [1, 1, 1, 1])) { }
        Assert.Equal(2 * 3 * 32 / 4, group.Volume.BytesByOperation["all_reduce"]);
        Assert.Equal(3 * 8, group.Volume.BytesByOperation["all_gather"]);
        Assert.Equal(3 * 8, group.Volume.BytesByOperation["reduce_scatter"]);
        Assert.Equal(3 * 12, group.Volume.BytesByOperation["all_to_all"]);
    });

    /// <summary>Runs <paramref name="body"/> for every rank of this process: all of them, on threads, unless a backend has it otherwise.</summary>
    protected virtual void RunRanks(int size, Action<int> body, Action<Exception>? onFailure = null) => RankThreads.Run(size, body, onFailure);

    /// <summary>Opens a world and runs <paramref name="body"/> on every rank's thread, each in a dispose scope with a leak check.</summary>
    protected void Run(int size, Action<ProcessGroup> body)
    {
        using var world = CreateWorld(size, Patience);
        RunRanks(size, rank =>
        {
            device = DeviceOf(rank);
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            body(world.Groups[rank]);
        }, failure => world.Groups[0].Abort(failure.Message));
    }

    private static double RampValue(int i, int rank) => i + 1 + 2 * rank;

    private static Tensor Ramp(int count, int rank) => Values([.. Enumerable.Range(0, count).Select(i => RampValue(i, rank))]);

    /// <summary>Values of both signs over eight binades, already rounded to <paramref name="dtype"/>.</summary>
    private static double[] RandomInput(int rank, int count, ScalarType dtype)
    {
        var random = new Random(1000 + rank);
        using var scope = NewDisposeScope();
        double[] values = [.. Enumerable.Range(0, count).Select(_ => (random.NextDouble() - 0.5) * Math.Pow(2, random.Next(8)))];
        return Read(torch.tensor(values).to_type(dtype));
    }

    /// <summary>Waits and reads the result on the host, as every rank does before it trusts a step.</summary>
    private static void Finish(ProcessGroup group, CollectiveWork work, Tensor result)
    {
        work.Wait();
        Read(result);
        group.ThrowIfFaulted();
    }

    private static void AllReduceToTheEnd(ProcessGroup group)
    {
        var tensor = Ones(4);
        Finish(group, group.AllReduce(tensor, ReduceOp.Sum), tensor);
    }

    private static Device OwnDevice => device ?? CPU;

    private static Tensor Values(double[] values) => torch.tensor(values, device: OwnDevice);

    private static Tensor Zeros(long rows, ScalarType? dtype = null) => zeros(rows, dtype: dtype, device: OwnDevice);

    private static Tensor Zeros(long rows, long columns, ScalarType? dtype = null) => zeros(rows, columns, dtype: dtype, device: OwnDevice);

    private static Tensor Ones(long rows, ScalarType? dtype = null) => ones(rows, dtype: dtype, device: OwnDevice);

    private static Tensor Ones(long rows, long columns, ScalarType? dtype = null) => ones(rows, columns, dtype: dtype, device: OwnDevice);

    private static Tensor Full(long rows, double value, ScalarType? dtype = null) => full(rows, value, dtype: dtype, device: OwnDevice);

    private static double[] Read(Tensor tensor)
    {
        using var onHost = tensor.cpu();
        using var wide = onHost.to_type(ScalarType.Float64);
        using var flat = wide.reshape(-1);
        return flat.data<double>().ToArray();
    }

    private static void AssertSameOnEveryRank(ProcessGroup group, Tensor result)
    {
        var all = zeros([group.Size, .. result.shape], dtype: result.dtype, device: result.device);
        using (group.AllGather(all, result)) { }
        Assert.True(all.eq(result).all().item<bool>());
    }

    private static void AssertValues(double[] expected, Tensor actual) => Assert.Equal(expected, Read(actual));
}

/// <summary>The groups of one test world: index = rank.</summary>
public interface IContractWorld : IDisposable
{
    /// <summary>One group per rank.</summary>
    IReadOnlyList<ProcessGroup> Groups { get; }
}
