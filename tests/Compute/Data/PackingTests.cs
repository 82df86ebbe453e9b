using System.IO.Hashing;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class PackingTests
{
    [Fact]
    public void Plan_FiveSamples_IsBestFitDecreasingByHand()
    {
        // Longest first: 7 opens a pack, 5 another, 4 goes to 5 (room 5), 3 fills up the 7, 2 opens the third.
        var plan = Packing.Plan([2, 7, 4, 3, 5], capacity: 10, PackingStrategy.BinPack);
        Assert.Equal<int[]>([[0], [1, 3], [2, 4]], Lists(plan));
    }

    [Fact]
    public void Plan_Sequential_KeepsTheOrder()
    {
        var plan = Packing.Plan([2, 7, 4, 3, 5], capacity: 10, PackingStrategy.Sequential);
        Assert.Equal<int[]>([[0, 1], [2, 3], [4]], Lists(plan));
    }

    [Theory]
    [InlineData(1500, 8192)]
    [InlineData(300, 8192)]
    [InlineData(300, 2048)]
    public void Plan_LogNormalLengths_FillsAtLeast995PerMille(int mean, int capacity)
    {
        var lengths = LogNormalLengths.Draw(50_000, mean, capacity, seed: 7);
        var plan = Packing.Plan(lengths, capacity, PackingStrategy.BinPack);
        Assert.InRange(plan.FillRate(i => lengths[i]), 0.995, 1);
        AssertHoldsEachSampleOnce(plan, lengths);
    }

    [Theory]
    [InlineData(PackingStrategy.BinPack)]
    [InlineData(PackingStrategy.Sequential)]
    public void Plan_SamplesThatNeverShare_AreAllPackedAndNonePilesUp(PackingStrategy strategy)
    {
        var lengths = new int[20_000];
        Array.Fill(lengths, 60);
        var plan = Packing.Plan(lengths, capacity: 100, strategy);
        Assert.Equal(20_000, plan.Count);
        AssertHoldsEachSampleOnce(plan, lengths);
    }

    [Fact]
    public void Plan_RandomLengths_AgreesWithTheSlowTwin()
    {
        for (var seed = 0; seed < 20; seed++)
        {
            var random = new Random(seed);
            var lengths = Enumerable.Range(0, random.Next(1, 900)).Select(_ => random.Next(1, 130)).ToArray();
            var plan = Packing.Plan(lengths, capacity: 130, PackingStrategy.BinPack);
            Assert.True(SlowBestFitDecreasing(lengths, 130).SequenceEqual(Lists(plan).Select(pack => string.Join(' ', pack))), $"seed {seed}");
        }
    }

    [Fact]
    public void Plan_SampleLongerThanAPack_IsRefused() =>
        Assert.Throws<ArgumentOutOfRangeException>(() => Packing.Plan([3, 11], capacity: 10, PackingStrategy.BinPack));

    [Fact]
    public void Plan_Twice_GivesTheSameBytes()
    {
        var lengths = LogNormalLengths.Draw(30_000, 300, 2048, seed: 3);
        Assert.Equal(Hash(Packing.Plan(lengths, 2048, PackingStrategy.BinPack)), Hash(Packing.Plan(lengths, 2048, PackingStrategy.BinPack)));

        static ulong Hash(PackPlan plan)
        {
            var hash = new XxHash64();
            plan.AppendTo(hash);
            return hash.GetCurrentHashAsUInt64();
        }
    }

    private static int[][] Lists(PackPlan plan) => [.. Enumerable.Range(0, plan.Count).Select(pack => plan[pack].ToArray())];

    private static void AssertHoldsEachSampleOnce(PackPlan plan, int[] lengths)
    {
        var seen = new bool[lengths.Length];
        for (var pack = 0; pack < plan.Count; pack++)
        {
            var tokens = 0;
            foreach (var sample in plan[pack])
            {
                Assert.False(seen[sample]);
                seen[sample] = true;
                tokens += lengths[sample];
            }
            Assert.InRange(tokens, 1, plan.Capacity);
        }
        Assert.DoesNotContain(false, seen);
    }

    // The definition, without an index of rooms: one window.
    private static IEnumerable<string> SlowBestFitDecreasing(int[] lengths, int capacity)
    {
        var packs = new List<List<int>>();
        foreach (var sample in Enumerable.Range(0, lengths.Length).OrderByDescending(i => lengths[i]).ThenBy(i => i))
        {
            var fits = packs.Where(pack => pack.Sum(i => lengths[i]) + lengths[sample] <= capacity).ToList();
            // Of equally full packs the one that has been so for longest: moved to the end of the list when it changes.
            var best = fits.Count == 0 ? [] : fits.MaxBy(pack => pack.Sum(i => lengths[i])) ?? [];
            packs.Remove(best);
            best.Add(sample);
            packs.Add(best);
        }
        return packs.Select(pack => pack.Order().ToArray()).OrderBy(pack => pack[0]).Select(pack => string.Join(' ', pack));
    }
}
