namespace Megatron.Compute.Data;

/// <summary>
/// Global batches from arrays of equally long rows, as golden files hold them: step s is the s-th stretch of <c>rowsPerStep</c> rows.
/// </summary>
public static class ArrayBatchSource
{
    /// <summary>Makes one sample of each row.</summary>
    /// <param name="inputIds">[steps, rowsPerStep, length] row-major token ids.</param>
    /// <param name="labels">Same shape, not shifted: position t predicts <c>labels[t + 1]</c>; −100 is masked.</param>
    /// <param name="length">Tokens of a row.</param>
    public static EncodedSample[] SamplesFromRows(ReadOnlySpan<long> inputIds, ReadOnlySpan<long> labels, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(length);
        if (inputIds.Length != labels.Length || inputIds.IsEmpty || inputIds.Length % length != 0)
            throw new ArgumentException($"{inputIds.Length} ids and {labels.Length} labels do not make rows of {length}");
        var samples = new EncodedSample[inputIds.Length / length];
        for (var row = 0; row < samples.Length; row++)
        {
            var ids = Narrow(inputIds.Slice(row * length, length));
            samples[row] = EncodedSample.FromUnshifted(ids, Narrow(labels.Slice(row * length, length)), weights: []);
        }
        return samples;
    }

    /// <summary>A source whose global batch s holds the rows of step s in order; after the last step it begins again.</summary>
    /// <param name="inputIds">[steps, rowsPerStep, length] row-major token ids.</param>
    /// <param name="labels">Same shape, not shifted.</param>
    /// <param name="rowsPerStep">Rows of a step: the global batch size.</param>
    /// <param name="length">Tokens of a row.</param>
    /// <param name="layout">This rank's layout.</param>
    public static PlannedBatchSource Create(ReadOnlySpan<long> inputIds, ReadOnlySpan<long> labels, int rowsPerStep, int length, BatchLayout layout)
    {
        var samples = SamplesFromRows(inputIds, labels, length);
        var plan = new BatchPlan(samples.Length, rowsPerStep, SampleOrder.Sequential, seed: 0);
        return new PlannedBatchSource(samples, plan, layout, LastBatch.ContinueWithNextEpoch);
    }

    private static int[] Narrow(ReadOnlySpan<long> values)
    {
        var narrow = new int[values.Length];
        for (var i = 0; i < values.Length; i++) narrow[i] = checked((int)values[i]);
        return narrow;
    }
}
