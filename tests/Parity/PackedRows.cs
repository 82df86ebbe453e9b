using Megatron.Compute.Data;

namespace Megatron.Parity.Tests;

/// <summary>The golden rows cut into samples of 1 to all of their tokens and packed again: segments of many lengths in a row.</summary>
internal static class PackedRows
{
    private const int Capacity = 56;

    /// <summary>How rows are cut, in turn; the last piece is what is left.</summary>
    private static readonly int[][] Cuts = [[], [7], [1, 19], [13, 3], [30], [11, 2, 6, 15]];

    /// <summary>Global batches of as many packs as the golden data has rows in a step.</summary>
    public static PlannedBatchSource Create(long[] ids, long[] labels, int packsPerStep, int length, BatchLayout layout)
    {
        var samples = new List<EncodedSample>();
        for (var row = 0; row < ids.Length / length; row++)
        {
            var begin = row * length;
            foreach (var cut in Cuts[row % Cuts.Length])
            {
                samples.Add(Sample(begin, begin + cut));
                begin += cut;
            }
            samples.Add(Sample(begin, (row + 1) * length));
        }
        var packs = Packing.Plan([.. samples.Select(sample => sample.Length)], Capacity, PackingStrategy.BinPack);
        var plan = new BatchPlan(packs.Count, packsPerStep, SampleOrder.Sequential, seed: 0);
        return new PlannedBatchSource(new MemorySamples(samples), packs, plan, layout, LastBatch.ContinueWithNextEpoch);

        EncodedSample Sample(int begin, int end) => EncodedSample.FromUnshifted(
            Array.ConvertAll(ids[begin..end], id => (int)id), Array.ConvertAll(labels[begin..end], label => (int)label), weights: []);
    }
}
