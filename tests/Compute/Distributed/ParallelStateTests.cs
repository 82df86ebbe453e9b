using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

public sealed class ParallelStateTests
{
    [Fact]
    public void Create_8RanksOnLoopback_EveryGroupSumsItsMembers()
    {
        var dims = new ParallelDims(8, 2, 2, 1, 2, null);
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(8, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var state = ParallelState.Create(dims, rank, world, sequenceParallel: true);
            Assert.Equal((rank, true), (state.Rank, state.SequenceParallel));
            foreach (var (kind, group) in GroupsOf(state))
            {
                var tensor = full(1, (double)rank, dtype: float64);
                group.AllReduce(tensor, ReduceOp.Sum).Wait();
                Assert.Equal(dims.MembersOf(kind, rank).Sum(), tensor.item<double>());
                Assert.Equal(dims.MembersOf(kind, rank), group.GlobalRanks);
            }
            Assert.Equal(rank < 4, state.IsFirstStage);
            Assert.Equal(rank >= 4, state.IsLastStage);
            state.World.Barrier(); // nobody leaves a group that others still use
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void Abort_WhilePeersWait_ReleasesThem()
    {
        var dims = new ParallelDims(2, 2, 1, 1, 1, null);
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        using var entered = new ManualResetEventSlim();
        RankThreads.Run(2, rank =>
        {
            using var state = ParallelState.Create(dims, rank, world, sequenceParallel: false);
            if (rank == 0)
            {
                entered.Wait();
                state.Abort("stop");
            }
            else
            {
                entered.Set();
                Assert.Throws<RankFaultException>(state.TensorParallel.Barrier);
            }
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void SingleRank_AllGroups_HaveOneMemberAndNeedNoBackend()
    {
        using var state = ParallelState.SingleRank();
        Assert.All(GroupsOf(state), entry => Assert.Equal(1, entry.Group.Size));
        Assert.True(state.IsFirstStage && state.IsLastStage);
        Assert.False(state.SequenceParallel);
    }

    [Fact]
    public void Create_SequenceParallelWithoutTensorParallel_HasNoEffect()
    {
        using var state = ParallelState.Create(ParallelDims.SingleRank, 0, new LoopbackWorld(TimeSpan.FromSeconds(1)), sequenceParallel: true);
        Assert.False(state.SequenceParallel);
    }

    [Fact]
    public void SingleRankGroup_Collectives_CopyAtOnce()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var group = new SingleRankGroup("tp");
        var input = arange(6, dtype: float32);
        var output = zeros(2, 3, dtype: float32);
        group.AllGather(output, input).Wait();
        Assert.Equal(15f, output.sum().item<float>());
        group.ReduceScatter(input, output.view(6).neg(), ReduceOp.Sum).Wait();
        Assert.Equal(-15f, input.sum().item<float>());
        group.AllReduce(input, ReduceOp.Average).Wait();
        group.Broadcast(input, 0).Wait();
        group.AllToAll(input, arange(6, dtype: float32), [6], [6]).Wait();
        Assert.Equal(15f, input.sum().item<float>());
        group.Barrier();
        Assert.Empty(group.Volume.BytesByOperation);
        Assert.Throws<InvalidOperationException>(() => group.Send(input, 0));
    }

    private static (GroupKind Kind, ProcessGroup Group)[] GroupsOf(ParallelState state) =>
    [
        (GroupKind.World, state.World), (GroupKind.TensorParallel, state.TensorParallel), (GroupKind.PipelineParallel, state.PipelineParallel),
        (GroupKind.ContextParallel, state.ContextParallel), (GroupKind.DataParallel, state.DataParallel),
        (GroupKind.DataContextParallel, state.DataContextParallel), (GroupKind.ExpertParallel, state.ExpertParallel),
        (GroupKind.ExpertTensorParallel, state.ExpertTensorParallel), (GroupKind.ExpertDataParallel, state.ExpertDataParallel),
        (GroupKind.ModelParallel, state.ModelParallel), (GroupKind.Embedding, state.Embedding),
    ];
}
