using CsCheck;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class RowSplitTests
{
    // The quick start of the reference: 500 rows of each set, the third having 108.
    [Theory]
    [InlineData(48818, 500, 495, 5)]
    [InlineData(108, 500, 499, 1)]
    [InlineData(500, null, 495, 5)]
    [InlineData(99, null, 98, 1)]
    [InlineData(2, null, 1, 1)]
    public void Make_OnePercent_TakesAtLeastOneRow(int numRows, int? requested, int train, int validation)
    {
        var split = RowSplit.Make("rows", numRows, requested, 0.01, shuffle: true, new DataRandom(42, "rows", 0));
        Assert.Equal(train, split.Train.Length);
        Assert.Equal(validation, split.Validation.Length);
        Assert.Empty(split.Train.Intersect(split.Validation));
    }

    [Fact]
    public void Make_MoreThanThereAre_RepeatsWholeSetsAndARandomRest()
    {
        var split = RowSplit.Make("self", 108, 500, 0.01, shuffle: true, new DataRandom(42, "rows", 2));
        var counts = split.Train.CountBy(row => row).Select(pair => pair.Value).ToArray();
        Assert.Equal(107, counts.Length);
        Assert.Equal(71, counts.Count(count => count == 5));
        Assert.Equal(36, counts.Count(count => count == 4));
    }

    [Fact]
    public void Make_WithoutShuffling_KeepsTheOrder()
    {
        var split = RowSplit.Make("rows", 10, 6, 0.34, shuffle: false, new DataRandom(42, "rows", 0));
        Assert.Equal([0, 1, 2, 3], split.Train);
        Assert.Equal([4, 5], split.Validation);
        Assert.Equal([0, 1, 2, 0, 1, 2, 0], RowSplit.Make("rows", 3, 7, 0, shuffle: false, new DataRandom(42, "rows", 0)).Train);
    }

    [Fact]
    public void Make_AnyNumbers_KeepsTheSetsApartAndTheSizesRight() =>
        Gen.Select(Gen.Int[2, 60], Gen.Int[2, 150], Gen.Double[0, 1], Gen.Bool, Gen.ULong).Sample((numRows, requested, ratio, shuffle, seed) =>
        {
            var available = Math.Min(numRows, requested);
            if ((int)(available * ratio) >= available && ratio < 1) return;
            var split = RowSplit.Make("rows", numRows, requested, ratio, shuffle, new DataRandom(seed, "rows", 0));
            Assert.Equal(requested, split.Train.Length + split.Validation.Length);
            Assert.Empty(split.Train.Intersect(split.Validation));
            Assert.All(split.Train.Concat(split.Validation), row => Assert.InRange(row, 0, numRows - 1));
            var counts = split.Train.CountBy(row => row).Select(pair => pair.Value).ToArray();
            if (counts.Length > 0 && split.Train.Length <= numRows - split.Validation.Length) Assert.Equal(1, counts.Max());
            if (ratio is > 0 and < 1) Assert.Equal(split.Validation.Length, split.Validation.Distinct().Count());
        });

    [Theory]
    [InlineData(-0.1)]
    [InlineData(1.5)]
    [InlineData(double.NaN)]
    public void Make_RatioThatIsNoShare_IsRefused(double ratio) =>
        Assert.Equal("DATA010", Assert.Throws<ConfigException>(() =>
            RowSplit.Make("rows", 10, null, ratio, shuffle: true, new DataRandom(1, "rows", 0))).Errors[0].Code);

    [Fact]
    public void Make_OneRow_CannotBeSplit() =>
        Assert.Equal("DATA021", Assert.Throws<ConfigException>(() =>
            RowSplit.Make("rows", 1, null, 0.01, shuffle: true, new DataRandom(1, "rows", 0))).Errors[0].Code);
}
