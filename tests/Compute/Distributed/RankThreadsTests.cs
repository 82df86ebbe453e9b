using Megatron.Compute.Distributed;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Distributed;

/// <summary>What the tests of several ranks stand on.</summary>
public sealed class RankThreadsTests
{
    /// <summary>Threads that stay inside libtorch while the process ends are a segmentation fault, which would hide the reason.</summary>
    [Fact]
    public void Run_LimitPasses_AbortsTheRanksAndReturnsWhenTheyHaveEnded()
    {
        var world = new LoopbackWorld(TimeSpan.FromMinutes(10));
        var numEnded = 0;
        var failure = Assert.Throws<TimeoutException>(() => RankThreads.Run(2, rank =>
        {
            // The third rank never comes.
            using var group = world.Create("test", rank, [0, 1, 2]);
            Assert.Throws<RankFaultException>(group.Barrier);
            Interlocked.Increment(ref numEnded);
        }, reason => world.Abort(reason.Message), limit: TimeSpan.Zero));
        Assert.Contains("rank 0 of 2 is still running", failure.Message);
        Assert.Equal(2, numEnded);
    }
}
