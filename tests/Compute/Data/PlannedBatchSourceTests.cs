using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class PlannedBatchSourceTests
{
    private static readonly EncodedSample[] TwoSamples =
    [
        new([11, 12, 13], [-100, 13, -100], null),
        new([21, 22], [22, -100], null),
    ];

    [Fact]
    public void Get_PaddedRow_IsLaidOutByHand()
    {
        var layout = BatchLayout.SingleRankUnpadded(2) with { PadRowToMultiple = 8, PadTokenId = 9 };
        var source = new PlannedBatchSource(TwoSamples, new BatchPlan(2, 2, SampleOrder.Sequential, 0), layout, LastBatch.ContinueWithNextEpoch);

        var batch = source.Get(0);

        var row = Assert.Single(batch.MicroBatches);
        Assert.Equal([11, 12, 13, 21, 22, 9, 9, 9], row.TokenIds);
        Assert.Equal([-100, 13, -100, 22, -100, -100, -100, -100], row.Labels);
        Assert.Equal([0, 1, 2, 0, 1, 0, 1, 2], row.Positions);
        Assert.Equal([0, 3, 5, 8], row.CuSeqLens);
        Assert.Equal([0, 1, 2, 3, 4, 5, 6, 7], row.GlobalTokenIndex);
        Assert.Equal(3, row.NumPaddingTokens);
        Assert.Equal(2, row.NumTargetTokens);
        Assert.Null(row.LossWeights);
        Assert.Null(row.SegmentPadding);
        Assert.Equal(2.0, batch.NumTargetTokensGlobal);
        Assert.Equal(2, batch.NumSamplesGlobal);
        Assert.Equal(1, batch.NumMicroBatchesGlobal);
    }

    [Fact]
    public void Get_SamplesPaddedForContextParallelism_AreLaidOutByHand()
    {
        var layout = BatchLayout.SingleRankUnpadded(2) with { PadSampleToMultiple = 4, PadRowToMultiple = 16, PadTokenId = 9 };
        var source = new PlannedBatchSource(TwoSamples, new BatchPlan(2, 2, SampleOrder.Sequential, 0), layout, LastBatch.ContinueWithNextEpoch);

        var row = source.Get(0).MicroBatches[0];

        Assert.Equal([11, 12, 13, 9, 21, 22, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], row.TokenIds);
        Assert.Equal([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7], row.Positions);
        Assert.Equal([0, 4, 8, 16], row.CuSeqLens);
        Assert.Equal<int[]?>([1, 2, 0], row.SegmentPadding);
        Assert.Equal(8, row.NumPaddingTokens);
        Assert.Equal([0, 1, 2], row.GlobalTokenIndex[..3]);
        Assert.Equal([3, 4], row.GlobalTokenIndex[4..6]);
    }

    [Fact]
    public void Get_WeightedSample_GivesTheOthersWeightOne()
    {
        EncodedSample[] samples = [new([1, 2, 3], [2, 3, -100], [0.5f, 2f, 0f]), TwoSamples[1]];
        var source = new PlannedBatchSource(samples, new BatchPlan(2, 2, SampleOrder.Sequential, 0), BatchLayout.SingleRankUnpadded(2),
            LastBatch.ContinueWithNextEpoch);

        var batch = source.Get(0);

        Assert.Equal<float[]?>([0.5f, 2f, 0f, 1f, 0f], batch.MicroBatches[0].LossWeights);
        Assert.Equal(3.5, batch.NumTargetTokensGlobal);
    }

    [Theory]
    [InlineData(1, 1)]
    [InlineData(1, 4)]
    [InlineData(2, 1)]
    [InlineData(2, 2)]
    [InlineData(4, 2)]
    public void Get_AnyLayout_HoldsTheSameTokensInTheSameOrder(int dataParallelSize, int microBatchSize)
    {
        var samples = TestSamples.Random(seed: 5, count: 23);
        var plan = new BatchPlan(samples.Length, 8, SampleOrder.Shuffled, seed: 42);
        var reference = new PlannedBatchSource(samples, plan, BatchLayout.SingleRankUnpadded(1), LastBatch.ContinueWithNextEpoch);
        for (var index = 0; index < 7; index++)
        {
            var expected = reference.Get(index);
            var tokens = new SortedDictionary<long, long>();
            var numMicroBatches = 0;
            for (var rank = 0; rank < dataParallelSize; rank++)
            {
                var layout = new BatchLayout
                {
                    DataParallelRank = rank, DataParallelSize = dataParallelSize, MicroBatchSize = microBatchSize,
                    PadRowToMultiple = 128, PadSampleToMultiple = 1, PadTokenId = 0,
                };
                var source = new PlannedBatchSource(samples, plan, layout, LastBatch.ContinueWithNextEpoch);
                Assert.Equal(reference.PlanHash, source.PlanHash);
                var batch = source.Get(index);
                Assert.Equal(expected.Hash, batch.Hash);
                Assert.Equal(expected.NumTargetTokensGlobal, batch.NumTargetTokensGlobal);
                Assert.Equal(8 / microBatchSize, batch.NumMicroBatchesGlobal);
                numMicroBatches += batch.MicroBatches.Count;
                foreach (var row in batch.MicroBatches)
                {
                    Assert.Equal(0, row.NumTokens % 128);
                    for (var i = 0; i < row.NumTokens - row.NumPaddingTokens; i++) tokens.Add(row.GlobalTokenIndex[i], row.TokenIds[i]);
                }
            }
            Assert.Equal(8 / microBatchSize, numMicroBatches);
            Assert.Equal(expected.MicroBatches.SelectMany(row => row.TokenIds), tokens.Values);
            Assert.Equal(expected.MicroBatches.SelectMany(row => row.GlobalTokenIndex), tokens.Keys);
        }
    }

    [Theory]
    [InlineData(PackingStrategy.BinPack)]
    [InlineData(PackingStrategy.Sequential)]
    public void Get_PacksFromTheMiddleOfAnEpochOnAnyLayout_AreThoseOfOneRankFromTheBeginning(PackingStrategy strategy)
    {
        var samples = new MemorySamples(TestSamples.Random(seed: 9, count: 301));
        var packs = Packing.Plan([.. samples.Select(sample => sample.Length)], capacity: samples.Max(sample => sample.Length) * 3, strategy);
        var plan = new BatchPlan(packs.Count, 8, SampleOrder.Shuffled, seed: 4);
        var reference = new PlannedBatchSource(samples, packs, plan, BatchLayout.SingleRankUnpadded(1), LastBatch.ContinueWithNextEpoch);
        var hashes = Enumerable.Range(0, 60).Select(i => reference.Get(i).Hash).ToArray();
        Assert.True(plan.EpochOf(59) >= 2);
        for (var rank = 0; rank < 4; rank++)
        {
            var layout = BatchLayout.SingleRankUnpadded(2) with { DataParallelRank = rank, DataParallelSize = 4, PadRowToMultiple = 128 };
            var source = new PlannedBatchSource(samples, packs, plan, layout, LastBatch.ContinueWithNextEpoch);
            Assert.Equal(reference.PlanHash, source.PlanHash);
            for (var i = 37; i < 60; i++) Assert.Equal(hashes[i], source.Get(i).Hash);
        }
    }

    [Fact]
    public void Get_ShortLastBatch_GivesEveryRankAsManyRowsAndCountsEachSampleOnce()
    {
        var samples = TestSamples.Random(seed: 6, count: 11);
        var plan = new BatchPlan(11, 8, SampleOrder.Sequential, 0);
        var targets = 0;
        for (var rank = 0; rank < 2; rank++)
        {
            var layout = BatchLayout.SingleRankUnpadded(2) with { DataParallelRank = rank, DataParallelSize = 2 };
            var batch = new PlannedBatchSource(samples, plan, layout, LastBatch.Short).Get(1);
            Assert.Equal(3, batch.NumSamplesGlobal);
            Assert.Equal(2, batch.NumMicroBatchesGlobal);
            targets += Assert.Single(batch.MicroBatches).NumTargetTokens;
            Assert.Equal(samples[8..].Sum(sample => sample.TargetWeight), batch.NumTargetTokensGlobal);
        }
        Assert.Equal(samples[8..].Sum(sample => sample.NumTargetTokens), targets);
    }

    [Fact]
    public void Get_ShortLastBatchOfOneSampleOnTwoRanks_FillsUpWithAMaskedRow()
    {
        var plan = new BatchPlan(1, 4, SampleOrder.Sequential, 0);
        var layout = BatchLayout.SingleRankUnpadded(1) with { DataParallelRank = 1, DataParallelSize = 2 };
        var row = Assert.Single(new PlannedBatchSource(TwoSamples[..1], plan, layout, LastBatch.Short).Get(0).MicroBatches);
        Assert.Equal([11, 12, 13], row.TokenIds);
        Assert.All(row.Labels, label => Assert.Equal(MicroBatch.IgnoreIndex, label));
        Assert.Equal(0, row.NumTargetTokens);
    }

    [Fact]
    public void Get_BatchWithoutTargets_FailsWithData020()
    {
        EncodedSample[] samples = [new([1, 2], [-100, -100], null)];
        var source = new PlannedBatchSource(samples, new BatchPlan(1, 1, SampleOrder.Sequential, 0), BatchLayout.SingleRankUnpadded(1),
            LastBatch.ContinueWithNextEpoch);
        Assert.Equal("DATA020", Assert.Throws<ConfigException>(() => source.Get(0)).Errors[0].Code);
    }

    [Fact]
    public void Constructor_BatchSizeDoesNotDivide_FailsWithTheValues()
    {
        var layout = BatchLayout.SingleRankUnpadded(3);
        var error = Assert.Throws<ConfigException>(() => new PlannedBatchSource(TwoSamples, new BatchPlan(2, 4, SampleOrder.Sequential, 0), layout,
            LastBatch.ContinueWithNextEpoch)).Errors[0];
        Assert.Equal("CFG100", error.Code);
        Assert.Contains("global_batch_size = 4", error.Message);
    }

    [Fact]
    public void ArrayBatchSource_RowsOfTwoSteps_ShiftsLabels()
    {
        long[] ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        long[] labels = [-100, 2, 3, 4, -100, 6, -100, 8, 9, 10, 11, -100];
        var source = ArrayBatchSource.Create(ids, labels, rowsPerStep: 2, length: 3, BatchLayout.SingleRankUnpadded(2));
        var first = source.Get(0).MicroBatches[0];
        Assert.Equal([1, 2, 3, 4, 5, 6], first.TokenIds);
        Assert.Equal([2, 3, -100, -100, 6, -100], first.Labels);
        Assert.Equal([0, 3, 6], first.CuSeqLens);
        Assert.Equal(0, first.NumPaddingTokens);
        Assert.Equal([8, 9, -100, 11, -100, -100], source.Get(1).MicroBatches[0].Labels);
        Assert.Equal(2, source.NumBatchesPerEpoch);
    }

    [Fact]
    public void FromUnshifted_WeightsAllOne_AreDropped()
    {
        Assert.Null(EncodedSample.FromUnshifted([1, 2, 3], [-100, 2, 3], [0f, 1f, 1f]).LossWeights);
        Assert.Equal<float[]?>([1f, 2f, 0f], EncodedSample.FromUnshifted([1, 2, 3], [-100, 2, 3], [0f, 1f, 2f]).LossWeights);
    }
}
