using CsCheck;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class BatchPlanTests
{
    [Fact]
    public void SampleIndices_Sequential_ContinuesIntoTheNextPass()
    {
        var plan = new BatchPlan(5, 3, SampleOrder.Sequential, seed: 1);
        Assert.Equal([0, 1, 2], plan.SampleIndices(0));
        Assert.Equal([3, 4, 0], plan.SampleIndices(1));
        Assert.Equal([1, 2, 3], plan.SampleIndices(2));
    }

    [Fact]
    public void SampleIndicesOfOnePass_LastBatch_IsShort()
    {
        var plan = new BatchPlan(5, 3, SampleOrder.Sequential, seed: 1);
        Assert.Equal([3, 4], plan.SampleIndicesOfOnePass(1));
        Assert.Throws<ArgumentOutOfRangeException>(() => plan.SampleIndicesOfOnePass(2));
    }

    [Fact]
    public void SampleIndices_Shuffled_VisitsEachSampleOncePerEpoch() =>
        Gen.Select(Gen.Int[1, 60], Gen.Int[1, 20], Gen.ULong, Gen.Int[1, 4]).Sample((numSamples, batchSize, seed, epochs) =>
        {
            var plan = new BatchPlan(numSamples, batchSize, SampleOrder.Shuffled, seed);
            var visited = new List<int>();
            for (long i = 0; i < plan.NumBatches(epochs); i++) visited.AddRange(plan.SampleIndices(i));
            for (var e = 0; e < epochs; e++)
                Assert.Equal(Enumerable.Range(0, numSamples), visited.Skip(e * numSamples).Take(numSamples).Order());
        });

    [Fact]
    public void SampleIndices_AskedInAnyOrder_AreTheSame()
    {
        var forward = new BatchPlan(37, 8, SampleOrder.Shuffled, seed: 42);
        var backward = new BatchPlan(37, 8, SampleOrder.Shuffled, seed: 42);
        var expected = Enumerable.Range(0, 30).Select(i => forward.SampleIndices(i)).ToArray();
        for (var i = 29; i >= 0; i--) Assert.Equal(expected[i], backward.SampleIndices(i));
    }

    [Fact]
    public void SampleIndices_OtherSeedOrEpoch_AreInAnotherOrder()
    {
        var plan = new BatchPlan(100, 100, SampleOrder.Shuffled, seed: 1);
        Assert.NotEqual(plan.SampleIndices(0), plan.SampleIndices(1));
        Assert.NotEqual(plan.SampleIndices(0), new BatchPlan(100, 100, SampleOrder.Shuffled, seed: 2).SampleIndices(0));
    }

    [Theory]
    [InlineData(1489, 16, 1, 94)]
    [InlineData(1489, 16, 2, 187)]
    [InlineData(32, 16, 3, 6)]
    [InlineData(3, 16, 1, 1)]
    public void NumBatches_Epochs_RoundsUp(int numSamples, int batchSize, int epochs, long expected) =>
        Assert.Equal(expected, new BatchPlan(numSamples, batchSize, SampleOrder.Shuffled, 0).NumBatches(epochs));

    [Fact]
    public void EpochOf_BatchThatCrossesTheBorder_CountsByItsFirstSample()
    {
        var plan = new BatchPlan(1489, 16, SampleOrder.Shuffled, seed: 42);
        Assert.Equal(0, plan.EpochOf(93));
        Assert.Equal(1, plan.EpochOf(94));
    }

    [Fact]
    public void Hash_AnySettingOrTokenChanges_Changes()
    {
        EncodedSample[] samples = [new([1, 2], [2, -100], null), new([3, 4], [4, -100], null)];
        EncodedSample[] otherToken = [new([1, 2], [2, -100], null), new([3, 5], [4, -100], null)];
        EncodedSample[] otherLabel = [new([1, 2], [2, -100], null), new([3, 4], [-100, 4], null)];
        EncodedSample[] otherWeight = [new([1, 2], [2, -100], [2f, 0f]), new([3, 4], [4, -100], null)];
        var hashes = new[]
        {
            Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 1), samples),
            Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 1), otherToken),
            Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 1), otherLabel),
            Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 1), otherWeight),
            Hash(new BatchPlan(2, 1, SampleOrder.Shuffled, 1), samples),
            Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 2), samples),
            Hash(new BatchPlan(2, 2, SampleOrder.Sequential, 1), samples),
        };
        Assert.Equal(hashes.Length, hashes.Distinct().Count());
        Assert.Equal(hashes[0], Hash(new BatchPlan(2, 2, SampleOrder.Shuffled, 1), samples));

        static ulong Hash(BatchPlan plan, EncodedSample[] samples) =>
            new PlannedBatchSource(samples, plan, BatchLayout.SingleRankUnpadded(1), LastBatch.ContinueWithNextEpoch).PlanHash;
    }
}
