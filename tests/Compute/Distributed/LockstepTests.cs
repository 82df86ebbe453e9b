using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

/// <summary>The test double that finds ranks which start collectives in different orders finds them.</summary>
public sealed class LockstepTests
{
    [Theory]
    [InlineData(true, true)]
    [InlineData(false, true)]
    [InlineData(true, false)]
    public void TwoGroups_OrderAndLockstep_OnlyDifferentOrdersInLockstepHang(bool isOrderEqual, bool isInLockstep)
    {
        var loopback = new LoopbackWorld(TimeSpan.FromSeconds(isOrderEqual || !isInLockstep ? 60 : 0.5));
        IProcessGroupFactory world = isInLockstep ? ObservedWorld.InLockstep(loopback) : loopback;
        var outcome = Record.Exception(() => RankThreads.Run(2, rank =>
        {
            using var scope = NewDisposeScope();
            ProcessGroup[] groups = [world.Create("first", rank, [0, 1]), world.Create("second", rank, [0, 1])];
            if (!isOrderEqual && rank == 1) Array.Reverse(groups);
            CollectiveWork[] works = [.. groups.Select(group => group.AllReduce(ones(3), ReduceOp.Sum))];
            foreach (var work in works) work.Dispose();
            foreach (var group in groups) group.Dispose();
        }, failure => loopback.Abort(failure.Message)));
        if (isOrderEqual || !isInLockstep) Assert.Null(outcome);
        else Assert.IsType<RankFaultException>(outcome);
    }
}
