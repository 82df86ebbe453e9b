namespace Megatron.Compute.Data;

/// <summary>
/// Lays samples one after another in a row (thd, D14). It does not choose them: that is <see cref="BatchPlan"/>.
/// </summary>
internal static class MicroBatchBuilder
{
    /// <param name="samples">Samples of the row in order.</param>
    /// <param name="firstTokens">For each sample the index of its first token in the global batch, counted without padding.</param>
    /// <param name="numGlobalTokens">Tokens of the global batch without padding: where the numbers of padding tokens begin.</param>
    /// <param name="layout">Padding rules.</param>
    /// <param name="masked">True for a row that only fills up a rank's share: no position has a label.</param>
    public static MicroBatch Build(ReadOnlySpan<EncodedSample> samples, ReadOnlySpan<long> firstTokens, long numGlobalTokens, BatchLayout layout,
        bool masked)
    {
        var lengths = new int[samples.Length];
        var weighted = false;
        for (var i = 0; i < samples.Length; i++)
        {
            lengths[i] = samples[i].Length;
            weighted |= samples[i].LossWeights is not null;
        }
        var segments = RowLayout.Of(lengths, layout.PadSampleToMultiple, layout.PadRowToMultiple);
        var row = new Row(segments.NumTokens, weighted);
        var targets = 0;
        for (var i = 0; i < samples.Length; i++)
        {
            var (sample, begin) = (samples[i], segments.CuSeqLens[i]);
            CopySample(sample, firstTokens[i], row, begin, masked);
            if (!masked) targets += sample.NumTargetTokens;
            FillPadding(row, begin, begin + sample.Length, segments.CuSeqLens[i + 1], numGlobalTokens, layout.PadTokenId);
        }
        var end = segments.NumTokens - segments.NumPaddingTokens;
        FillPadding(row, end, end, segments.NumTokens, numGlobalTokens, layout.PadTokenId);
        return new MicroBatch
        {
            TokenIds = row.TokenIds,
            Labels = row.Labels,
            LossWeights = row.LossWeights,
            Positions = row.Positions,
            CuSeqLens = segments.CuSeqLens,
            NumPaddingTokens = segments.NumPaddingTokens,
            SegmentPadding = segments.SegmentPadding,
            GlobalTokenIndex = row.GlobalTokenIndex,
            NumTargetTokens = targets,
        };
    }

    private static void CopySample(EncodedSample sample, long firstToken, Row row, int offset, bool masked)
    {
        for (var i = 0; i < sample.Length; i++)
        {
            var label = masked ? MicroBatch.IgnoreIndex : sample.Labels[i];
            row.TokenIds[offset + i] = sample.TokenIds[i];
            row.Labels[offset + i] = label;
            row.Positions[offset + i] = i;
            row.GlobalTokenIndex[offset + i] = firstToken + i;
            if (row.LossWeights is not null && label != MicroBatch.IgnoreIndex) row.LossWeights[offset + i] = sample.LossWeights?[i] ?? 1f;
        }
    }

    private static void FillPadding(Row row, int segmentBegin, int begin, int end, long numGlobalTokens, int padTokenId)
    {
        for (var i = begin; i < end; i++)
        {
            row.TokenIds[i] = padTokenId;
            row.Labels[i] = MicroBatch.IgnoreIndex;
            row.Positions[i] = i - segmentBegin;
            row.GlobalTokenIndex[i] = numGlobalTokens + (i - begin);
        }
    }

    private sealed class Row(int length, bool weighted)
    {
        public long[] TokenIds { get; } = new long[length];
        public long[] Labels { get; } = new long[length];
        public float[]? LossWeights { get; } = weighted ? new float[length] : null;
        public int[] Positions { get; } = new int[length];
        public long[] GlobalTokenIndex { get; } = new long[length];
    }
}
