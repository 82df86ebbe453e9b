using Megatron.Compute.Training;

namespace Megatron.Compute.Tests.Training;

public sealed class MemoryGrowthTests
{
    [Fact]
    public void AfterStep_GrowthAfterTheSecond_IsToldOnce()
    {
        long[] used = [100L << 20, 300L << 20, 300L << 20, 364L << 20, 400L << 20];
        var step = 0;
        var growth = new MemoryGrowth(() => used[step - 1]);
        var warnings = new List<string?>();
        for (step = 1; step <= used.Length; step++) warnings.Add(growth.AfterStep(step));
        Assert.Equal([null, null, null, warnings[3], null], warnings);
        Assert.StartsWith("64 MiB more of the GPU's memory are taken after step 4 of this attempt than after step 2.", warnings[3], StringComparison.Ordinal);
    }

    [Fact]
    public void AfterStep_NoGrowthOrLess_SaysNothing()
    {
        long[] used = [900, 1000, 800, 1000, 999];
        var step = 0;
        var growth = new MemoryGrowth(() => used[step - 1]);
        for (step = 1; step <= used.Length; step++) Assert.Null(growth.AfterStep(step));
    }
}
