using Megatron.Compute.Data;

namespace Megatron.Testing;

/// <summary>Micro-batches made by hand for tests of layers and models.</summary>
public static class TestBatches
{
    /// <summary>
    /// A row of random tokens: segments of the given lengths, each with shifted labels of which about a fifth are ignored.
    /// </summary>
    /// <param name="numPaddingTokens">Length of one more segment at the end that only pads.</param>
    public static MicroBatch Random(Random random, int vocabulary, int[] segmentLengths, int numPaddingTokens = 0)
    {
        int[] lengths = numPaddingTokens > 0 ? [.. segmentLengths, numPaddingTokens] : segmentLengths;
        var rows = lengths.Select(length => Enumerable.Range(0, length).Select(_ => (long)random.Next(vocabulary)).ToArray()).ToArray();
        var labels = rows.Select((row, index) => row.Skip(1).Append(MicroBatch.IgnoreIndex)
            .Select(label => index >= segmentLengths.Length || random.Next(5) == 0 ? MicroBatch.IgnoreIndex : label).ToArray()).ToArray();
        return FromRows(rows, labels) with { NumPaddingTokens = numPaddingTokens };
    }

    /// <summary>Rows [B][S] of a batch whose labels are not shifted yet (position t predicts label t + 1), one after another.</summary>
    public static MicroBatch FromUnshifted(long[][] tokens, long[][] labels) =>
        FromRows(tokens, [.. labels.Select(row => row.Skip(1).Append(MicroBatch.IgnoreIndex).ToArray())]);

    private static MicroBatch FromRows(long[][] tokens, long[][] shiftedLabels)
    {
        long[] allLabels = [.. shiftedLabels.SelectMany(row => row)];
        return new MicroBatch
        {
            TokenIds = [.. tokens.SelectMany(row => row)],
            Labels = allLabels,
            Positions = [.. tokens.SelectMany(row => Enumerable.Range(0, row.Length))],
            CuSeqLens = [0, .. tokens.Select((_, index) => tokens.Take(index + 1).Sum(row => row.Length))],
            GlobalTokenIndex = [.. Enumerable.Range(0, allLabels.Length).Select(index => (long)index)],
            NumTargetTokens = allLabels.Count(label => label != MicroBatch.IgnoreIndex),
        };
    }
}
