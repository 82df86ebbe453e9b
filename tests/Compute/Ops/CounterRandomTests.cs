using Megatron.Compute.Ops;

namespace Megatron.Compute.Tests.Ops;

/// <summary>The counter-based generator against published values, and its statistics.</summary>
public sealed class CounterRandomTests
{
    /// <summary>Known answers of philox4x32-10 distributed with the Random123 library (kat_vectors).</summary>
    [Theory]
    [InlineData(0UL, 0u, 0u, 0u, 0u, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u)]
    [InlineData(ulong.MaxValue, uint.MaxValue, uint.MaxValue, uint.MaxValue, uint.MaxValue, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu)]
    [InlineData(0x299f31d0a4093822UL, 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u)]
    public void Block_KnownCounters_GivesPublishedNumbers(ulong key, uint c0, uint c1, uint c2, uint c3, uint x0, uint x1, uint x2, uint x3) =>
        Assert.Equal((x0, x1, x2, x3), new CounterRandom(key).Block(c0, c1, c2, c3));

    [Theory]
    [InlineData(1), InlineData(3), InlineData(15), InlineData(16), InlineData(63), InlineData(1000)]
    public void FillKeep_AnyWidth_EqualsOneBlockAtATime(int width)
    {
        var random = CounterRandom.ForStream(seed: 42, step: 7, stream: 33);
        var keep = new byte[width];
        var token = 0x1_2345_6789UL;
        random.FillKeep(keep, token, subStream: 5, dropProbability: 0.3);
        for (var feature = 0; feature < width; feature++)
        {
            var (x0, x1, x2, x3) = random.Block((uint)feature / 4, 5, (uint)token, (uint)(token >> 32));
            uint[] numbers = [x0, x1, x2, x3];
            Assert.Equal(numbers[feature % 4] >= (uint)(0.3 * 4294967296.0) ? 1 : 0, keep[feature]);
        }
    }

    [Fact]
    public void FillKeep_ManyValues_DropsTheAskedShare()
    {
        var keep = new byte[1_000_000];
        CounterRandom.ForStream(1, 2, 3).FillKeep(keep, 9, 0, 0.1);
        Assert.Equal(0.9, keep.Sum(value => (double)value) / keep.Length, 0.002); // 6 standard deviations
    }

    [Fact]
    public void ForStream_EveryCoordinate_ChangesTheNumbers()
    {
        var blocks = new[] { (0L, 0L, 0UL), (1L, 0L, 0UL), (0L, 1L, 0UL), (0L, 0L, 1UL) }
            .Select(key => CounterRandom.ForStream(key.Item1, key.Item2, key.Item3).Block(0, 0, 0, 0));
        Assert.Equal(4, blocks.Distinct().Count());
    }

    [Fact]
    public void FillNormal_AnyCut_GivesTheSameValues()
    {
        var random = CounterRandom.ForStream(3, 0, CounterRandom.StreamOf("a.weight"));
        var whole = new float[1001];
        random.FillNormal(whole, 5);
        for (var start = 0; start < whole.Length; start += 7)
        {
            var part = new float[Math.Min(7, whole.Length - start)];
            random.FillNormal(part, 5 + start);
            Assert.Equal(whole[start..(start + part.Length)], part);
        }
    }

    [Fact]
    public void FillNormal_ManyValues_HasMeanZeroAndVarianceOne()
    {
        var values = new float[1_000_000];
        CounterRandom.ForStream(3, 0, 1).FillNormal(values, 0);
        Assert.Equal(0, values.Average(value => (double)value), 0.006);
        Assert.Equal(1, values.Average(value => (double)value * value), 0.01);
        Assert.Equal(3, values.Average(value => Math.Pow(value, 4)), 0.06);
    }
}
