using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class RowLayoutTests
{
    [Fact]
    public void Of_NoPadding_EndsWithTheLastSample()
    {
        var layout = RowLayout.Of([3, 5], padSampleToMultiple: 1, padRowToMultiple: 1);
        Assert.Equal([0, 3, 8], layout.CuSeqLens);
        Assert.Equal((8, 0), (layout.NumTokens, layout.NumPaddingTokens));
        Assert.Null(layout.SegmentPadding);
    }

    [Fact]
    public void Of_PaddedRow_HasOnePaddingSegment()
    {
        var layout = RowLayout.Of([3, 5], padSampleToMultiple: 1, padRowToMultiple: 128);
        Assert.Equal([0, 3, 8, 128], layout.CuSeqLens);
        Assert.Equal(120, layout.NumPaddingTokens);
    }

    [Fact]
    public void Of_ContextParallel_PadsEachSample()
    {
        var layout = RowLayout.Of([3, 5, 8], padSampleToMultiple: 4, padRowToMultiple: 20);
        Assert.Equal([0, 4, 12, 20], layout.CuSeqLens);
        Assert.Equal(0, layout.NumPaddingTokens);
        Assert.Equal<int[]?>([1, 3, 0], layout.SegmentPadding);
    }

    [Theory]
    [InlineData(128, 1, 1, 128)]
    [InlineData(128, 2, 4, 128)]
    [InlineData(128, 3, 1, 384)]
    [InlineData(1, 1, 1, 1)]
    [InlineData(1, 2, 1, 4)]
    [InlineData(1, 1, 2, 2)]
    [InlineData(1, 2, 2, 4)]
    public void RowMultiple_LetsEveryRankTakeAnEqualPart(int wanted, int contextParallel, int sequenceParallel, int expected) =>
        Assert.Equal(expected, RowLayout.RowMultiple(wanted, contextParallel, sequenceParallel));

    [Fact]
    public void RandomRows_KeepTheRules()
    {
        for (var seed = 0; seed < 200; seed++)
        {
            var random = new Random(seed);
            var lengths = Enumerable.Range(0, random.Next(1, 9)).Select(_ => random.Next(1, 400)).ToArray();
            var cp = random.Next(1, 5);
            var multiple = RowLayout.RowMultiple(random.Next(2) == 0 ? 1 : 128, cp, 1);
            var layout = RowLayout.Of(lengths, RowLayout.SampleMultiple(cp), multiple);
            var because = $"seed {seed}";
            Assert.True(layout.NumTokens % multiple == 0 && layout.NumTokens - layout.NumPaddingTokens - multiple < layout.NumTokens, because);
            Assert.True(layout.NumPaddingTokens < multiple, because);
            for (var i = 1; i < layout.CuSeqLens.Length; i++) Assert.True(layout.CuSeqLens[i] % RowLayout.SampleMultiple(cp) == 0, because);
            for (var i = 0; i < lengths.Length; i++)
                Assert.True(layout.CuSeqLens[i + 1] - layout.CuSeqLens[i] - (layout.SegmentPadding?[i] ?? 0) == lengths[i], because);
        }
    }
}
