using CsCheck;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class DataRandomTests
{
    [Fact]
    public void NextUInt64_SameSeed_IsTheSameForEver()
    {
        // The stored order of a run depends on these numbers: a change of the generator would change every resumed run.
        var random = new DataRandom(42, "epoch", 0);
        Assert.Equal([0x4AD12872E5FCA0EBUL, 0x7B90A82C822BA000UL], new[] { random.NextUInt64(), random.NextUInt64() });
    }

    [Fact]
    public void NextUInt64_OtherPurposeOrIndex_IsAnotherStream()
    {
        var first = new[] { new DataRandom(42, "epoch", 0), new DataRandom(42, "epoch", 1), new DataRandom(42, "split", 0), new DataRandom(43, "epoch", 0) }
            .Select(random => random.NextUInt64()).ToArray();
        Assert.Equal(4, first.Distinct().Count());
    }

    [Fact]
    public void Permutation_AnyCount_HoldsEachIndexOnce() =>
        Gen.Select(Gen.ULong, Gen.Int[0, 300]).Sample((seed, count) =>
            Enumerable.Range(0, count).SequenceEqual(new DataRandom(seed, "test", 0).Permutation(count).Order()));

    [Fact]
    public void Shuffle_AllOrdersOfFour_AreEquallyLikely()
    {
        var random = new DataRandom(7, "test", 0);
        var counts = new Dictionary<string, int>();
        for (var i = 0; i < 24_000; i++)
        {
            var key = string.Concat(random.Permutation(4));
            counts[key] = counts.GetValueOrDefault(key) + 1;
        }
        // 24 orders, 1,000 expected each; standard deviation 31, so 5 sigma is 155.
        Assert.Equal(24, counts.Count);
        Assert.All(counts.Values, count => Assert.InRange(count, 845, 1155));
    }
}
