namespace Megatron.Compute.Data;

/// <summary>
/// Where the samples of one row lie (thd, DESIGN D14; reference 3.5): each padded to a multiple of 2·cp, the row to a multiple of 128 by one
/// padding segment at its end. Pure arithmetic on lengths, the one place that knows the rule.
/// </summary>
/// <param name="NumTokens">Length of the row.</param>
/// <param name="CuSeqLens">[segments + 1] borders; the padding at the end, if any, is the last segment.</param>
/// <param name="NumPaddingTokens">Length of the padding segment; 0 when there is none.</param>
/// <param name="SegmentPadding">[segments] padding inside each segment, or null when samples are not padded.</param>
public sealed record RowLayout(int NumTokens, int[] CuSeqLens, int NumPaddingTokens, int[]? SegmentPadding)
{
    /// <summary>Lays out samples of these lengths one after another.</summary>
    /// <param name="lengths">Tokens of each sample, at least one sample.</param>
    /// <param name="padSampleToMultiple">2·cp, or 1 without context parallelism.</param>
    /// <param name="padRowToMultiple">See <see cref="RowMultiple"/>.</param>
    public static RowLayout Of(ReadOnlySpan<int> lengths, int padSampleToMultiple, int padRowToMultiple)
    {
        var numSampleTokens = 0;
        foreach (var length in lengths) numSampleTokens = checked(numSampleTokens + RoundUp(length, padSampleToMultiple));
        var numTokens = RoundUp(numSampleTokens, padRowToMultiple);
        var hasPadding = numTokens > numSampleTokens;
        var cuSeqLens = new int[lengths.Length + 1 + (hasPadding ? 1 : 0)];
        var segmentPadding = padSampleToMultiple > 1 ? new int[cuSeqLens.Length - 1] : null;
        for (var i = 0; i < lengths.Length; i++)
        {
            var padded = RoundUp(lengths[i], padSampleToMultiple);
            cuSeqLens[i + 1] = cuSeqLens[i] + padded;
            if (segmentPadding is not null) segmentPadding[i] = padded - lengths[i];
        }
        if (hasPadding) cuSeqLens[^1] = numTokens;
        return new RowLayout(numTokens, cuSeqLens, numTokens - numSampleTokens, segmentPadding);
    }

    /// <summary>Samples are cut into 2·cp equal pieces, of which each rank takes two (zigzag).</summary>
    /// <param name="contextParallelSize">cp.</param>
    public static int SampleMultiple(int contextParallelSize) => contextParallelSize == 1 ? 1 : 2 * contextParallelSize;

    /// <summary>
    /// What a row is padded to: the wanted multiple, made divisible by 2·cp (the padding segment is split like a sample) and, with sequence
    /// parallelism, each rank's part of it by tp.
    /// </summary>
    /// <param name="wanted"><c>row_padding_multiple</c>: 128, or 1 for rows without padding.</param>
    /// <param name="contextParallelSize">cp.</param>
    /// <param name="sequenceParallelSize">tp with sequence parallelism, else 1.</param>
    public static int RowMultiple(int wanted, int contextParallelSize, int sequenceParallelSize) =>
        LeastCommonMultiple(LeastCommonMultiple(wanted, SampleMultiple(contextParallelSize)), checked(contextParallelSize * sequenceParallelSize));

    private static int RoundUp(int value, int multiple) => checked((value + multiple - 1) / multiple * multiple);

    private static int LeastCommonMultiple(int a, int b)
    {
        var (x, y) = (a, b);
        while (y != 0) (x, y) = (y, x % y);
        return checked(a / x * b);
    }
}
