using System.Diagnostics;
using System.Globalization;
using System.IO.Hashing;
using Megatron.Compute.Data;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Data;

/// <summary>Packing at real size: <c>./megatron test Compute --large -- -showLiveOutput</c> prints the figures kept in docs/data.md.</summary>
[Collection<Alone>]
[Trait("Category", "large")]
public sealed class PackingScaleTests(ITestOutputHelper output)
{
    [Theory]
    [InlineData(1500, 8192)]
    [InlineData(300, 8192)]
    [InlineData(300, 2048)]
    public void Plan_TenMillionLogNormalLengths_TakesSecondsAndFills(int mean, int capacity)
    {
        var lengths = LogNormalLengths.Draw(10_000_000, mean, capacity, seed: 1);
        GC.Collect();
        var before = Environment.WorkingSet;
        var watch = Stopwatch.StartNew();
        var processor = Process.GetCurrentProcess().TotalProcessorTime;
        var plan = Packing.Plan(lengths, capacity, PackingStrategy.BinPack);
        var seconds = (Process.GetCurrentProcess().TotalProcessorTime - processor).TotalSeconds;
        var mebibytes = (Process.GetCurrentProcess().PeakWorkingSet64 - before) >> 20;
        var fill = plan.FillRate(i => lengths[i]);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"mean {mean} into {capacity}: {plan.Count} packs, filled to {100 * fill:F2} %, {seconds:F1} s of processor time ({watch.Elapsed.TotalSeconds:F1} s in all), {mebibytes} MiB more than the lengths, hash {Hash(plan):x16}"));
        Assert.InRange(fill, 0.995, 1);
        Assert.InRange(seconds, 0, 10);
        Assert.InRange(mebibytes, 0, 400);
        Assert.Equal(Hash(plan), Hash(Packing.Plan(lengths, capacity, PackingStrategy.BinPack)));
    }

    private static ulong Hash(PackPlan plan)
    {
        var hash = new XxHash64();
        plan.AppendTo(hash);
        return hash.GetCurrentHashAsUInt64();
    }
}
