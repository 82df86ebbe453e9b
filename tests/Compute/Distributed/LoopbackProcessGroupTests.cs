using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

public sealed class LoopbackProcessGroupTests : ProcessGroupContract
{
    protected override IContractWorld CreateWorld(int size, TimeSpan timeout) => new World(size, timeout);

    [Fact]
    public void AllReduce_OtherShapeOnAPeer_FaultNamesBothCalls()
    {
        var fault = Mismatch(
            group => group.AllReduce(ones(4), ReduceOp.Sum), group => group.AllReduce(ones(5), ReduceOp.Sum));
        Assert.Contains("all_reduce(Float32[4], Sum)", fault.Message);
        Assert.Contains("all_reduce(Float32[5], Sum)", fault.Message);
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

    [Fact]
    public void Create_SameNameOtherMembers_AreSeparateGroups()
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(4, rank =>
        {
            using var scope = NewDisposeScope();
            int[] members = rank < 2 ? [0, 1] : [2, 3];
            using var group = world.Create("tp", rank, members);
            var tensor = full(1, (double)rank, dtype: float64);
            using (group.AllReduce(tensor, ReduceOp.Sum)) { }
            Assert.Equal(rank < 2 ? 1 : 5, tensor.item<double>());
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void Create_AfterWorldWasAborted_FaultsAtOnce()
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        world.Abort("over");
        using var group = world.Create("tp", 0, [0, 1]);
        Assert.Contains("over", Assert.Throws<RankFaultException>(group.Barrier).Message);
    }

    /// <summary>
    /// An abort, or a timeout, releases a rank, which then frees its tensors. The rank that computes for all may be reading them just then: the
    /// one must not return before the other is through.
    /// </summary>
    [Fact]
    public void Abort_WhileAPeerReadsARanksTensor_ReleasesItAfterwards()
    {
        var hub = new LoopbackHub("test", [0, 1], TimeSpan.FromSeconds(30));
        using var hasEntered = new ManualResetEventSlim();
        using var isReading = new ManualResetEventSlim();
        using var hasReturned = new ManualResetEventSlim();
        Thread? aborting = null;
        var sum = 0f;
        RankThreads.Run(3, thread =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            switch (thread)
            {
                case 0:
                    var work = hub.Enter(0, new LoopbackCall { Signature = "sum", Input = LoopbackHub.Hold(ones(4)), Combine = Read });
                    hasEntered.Set();
                    work.Wait();
                    hasReturned.Set();
                    break;
                case 1:
                    hasEntered.Wait(TimeSpan.FromSeconds(30));
                    hub.Enter(1, new LoopbackCall { Signature = "sum", Input = LoopbackHub.Hold(ones(4)) }).Wait();
                    break;
                default:
                    isReading.Wait(TimeSpan.FromSeconds(30));
                    Volatile.Write(ref aborting, Thread.CurrentThread);
                    hub.Abort("over");
                    break;
            }
        }, failure => hub.Abort(failure.Message));
        Assert.Equal(4f, sum);

        // On the thread of rank 1, until the abort either waits for the end of this or has released rank 0.
        void Read(LoopbackCall[] calls)
        {
            isReading.Set();
            SpinWait.SpinUntil(() => hasReturned.IsSet || Volatile.Read(ref aborting) is { } thread && thread.ThreadState.HasFlag(ThreadState.WaitSleepJoin));
            Assert.False(hasReturned.IsSet);
            sum = calls[0].Input?.sum().item<float>() ?? 0;
        }
    }

    private static RankFaultException Mismatch(Func<ProcessGroup, CollectiveWork> onFirst, Func<ProcessGroup, CollectiveWork> onSecond)
    {
        using var world = new World(2, TimeSpan.FromSeconds(30));
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

    private sealed class World : IContractWorld
    {
        public IReadOnlyList<ProcessGroup> Groups { get; }

        public World(int size, TimeSpan timeout)
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
