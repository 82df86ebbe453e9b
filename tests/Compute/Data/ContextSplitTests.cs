using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class ContextSplitTests(ITestOutputHelper output)
{
    [Fact]
    public void Take_TwoSegmentsOnTwoRanks_IsLaidOutByHand()
    {
        var whole = new MicroBatch
        {
            TokenIds = [10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 23],
            Labels = [11, 12, 13, 14, 15, 16, -100, -100, 21, -100, -100, -100],
            LossWeights = [1, 2, 3, 4, 5, 6, 0, 0, 7, 0, 0, 0],
            Positions = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3],
            CuSeqLens = [0, 8, 12],
            SegmentPadding = [1, 2],
            GlobalTokenIndex = [0, 1, 2, 3, 4, 5, 6, 9, 7, 8, 9, 10],
            NumTargetTokens = 7,
        };

        var (first, second) = (new ContextSplit(0, 2).Take(whole), new ContextSplit(1, 2).Take(whole));

        Assert.Equal([10, 11, 16, 17, 20, 23], first.TokenIds);
        Assert.Equal([12, 13, 14, 15, 21, 22], second.TokenIds);
        Assert.Equal([11, 12, -100, -100, 21, -100], first.Labels);
        Assert.Equal([13, 14, 15, 16, -100, -100], second.Labels);
        Assert.Equal<float[]?>([3, 4, 5, 6, 0, 0], second.LossWeights);
        Assert.Equal([0, 1, 6, 7, 0, 3], first.Positions);
        Assert.Equal([0, 1, 6, 9, 7, 10], first.GlobalTokenIndex);
        Assert.Equal([0, 4, 6], first.CuSeqLens);
        Assert.Equal<int[]?>([1, 1], first.SegmentPadding);
        Assert.Equal<int[]?>([0, 1], second.SegmentPadding);
        Assert.Equal((3, 4), (first.NumTargetTokens, second.NumTargetTokens));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Take_RandomPackedRows_HoldEveryTokenOnceInRisingOrder(int numRanks)
    {
        var seed = Random.Shared.Next();
        output.WriteLine($"seed {seed}");
        var random = new Random(seed);
        var samples = TestSamples.Random(random.Next(), 40); // of 1 to 20 tokens: many are shorter than 2·cp
        var layout = BatchLayout.SingleRankUnpadded(5) with { PadSampleToMultiple = 2 * numRanks, PadRowToMultiple = 24, PadTokenId = 9999 };
        var source = new PlannedBatchSource(samples, new BatchPlan(samples.Length, 20, SampleOrder.Shuffled, 7), layout, LastBatch.ContinueWithNextEpoch);
        foreach (var whole in source.Get(0).MicroBatches)
        {
            var parts = Enumerable.Range(0, numRanks).Select(rank => new ContextSplit(rank, numRanks).Take(whole)).ToArray();
            Assert.All(parts, part => Assert.Equal(whole.NumTokens / numRanks, part.NumTokens));
            Assert.Equal(whole.TokenIds.Order(), parts.SelectMany(part => part.TokenIds).Order());
            Assert.Equal(whole.GlobalTokenIndex.Zip(whole.Labels).Order(), parts.SelectMany(part => part.GlobalTokenIndex.Zip(part.Labels)).Order());
            Assert.Equal(whole.NumTargetTokens, parts.Sum(part => part.NumTargetTokens));
            Assert.Equal(whole.NumPaddingTokens, parts.Sum(part => part.NumPaddingTokens));
            Assert.Equal(whole.SegmentPadding?.Sum(), parts.Sum(part => part.SegmentPadding?.Sum()));
            foreach (var part in parts) AssertOrderAndPadding(part);
        }
    }

    [Fact]
    public void Take_OneRank_GivesTheRowItself()
    {
        var whole = Row(5);
        Assert.Same(whole, new ContextSplit(0, 1).Take(whole));
    }

    [Fact]
    public void Take_SegmentThatWasNotPadded_SaysWhichAndWhatIsMissing()
    {
        var failure = Assert.Throws<InvalidOperationException>(() => new ContextSplit(1, 2).Take(Row(6)));
        Assert.Contains("segment 0 has 6 tokens", failure.Message, StringComparison.Ordinal);
        Assert.Contains("multiple of 4", failure.Message, StringComparison.Ordinal);
    }

    /// <summary>Positions rise inside a segment, and exactly the last tokens of a segment are padding.</summary>
    private static void AssertOrderAndPadding(MicroBatch part)
    {
        for (var segment = 0; segment + 1 < part.CuSeqLens.Length; segment++)
        {
            var tokens = part.CuSeqLens[segment]..part.CuSeqLens[segment + 1];
            Assert.Equal(part.Positions[tokens].Order(), part.Positions[tokens]);
            var isRowPadding = part.CuSeqLens[segment] >= part.NumTokens - part.NumPaddingTokens;
            var numPadding = isRowPadding ? part.TokenIds[tokens].Length : part.SegmentPadding?[segment] ?? 0;
            Assert.All(part.TokenIds[tokens][^numPadding..], id => Assert.Equal(9999, id));
            Assert.DoesNotContain(9999, part.TokenIds[tokens][..^numPadding]);
        }
    }

    private static MicroBatch Row(int length) => new()
    {
        TokenIds = new long[length], Labels = new long[length], Positions = [.. Enumerable.Range(0, length)], CuSeqLens = [0, length],
        GlobalTokenIndex = new long[length], NumTargetTokens = length,
    };
}
