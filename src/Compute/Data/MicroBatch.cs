namespace Megatron.Compute.Data;

/// <summary>
/// One row of tokens in thd layout (DESIGN D14), in host memory; <c>T</c> is its length. Samples lie one after another; position ids
/// restart at each. Labels are already shifted: <see cref="Labels"/>[i] is the token that position i has to predict.
/// </summary>
public sealed record MicroBatch
{
    /// <summary>Label of a position that carries no loss.</summary>
    public const int IgnoreIndex = -100;

    /// <summary>[T] token ids.</summary>
    public required long[] TokenIds { get; init; }

    /// <summary>[T] shifted labels; <see cref="IgnoreIndex"/> where there is no target.</summary>
    public required long[] Labels { get; init; }

    /// <summary>[T] loss weights (0 where the label is ignored), or null when all targets weigh 1.</summary>
    public float[]? LossWeights { get; init; }

    /// <summary>[T] position of each token in its sample.</summary>
    public required int[] Positions { get; init; }

    /// <summary>[segments + 1] borders of the segments: <c>CuSeqLens[0] == 0</c>, last equals T. Attention never crosses a border.</summary>
    public required int[] CuSeqLens { get; init; }

    /// <summary>Tokens at the end of the row that only pad it (one segment of its own); they take no part in routing or losses.</summary>
    public int NumPaddingTokens { get; init; }

    /// <summary>
    /// [segments] padding tokens at the end of each sample's own segment (context parallelism pads samples to a multiple of 2·cp), or null
    /// when samples are not padded. They are padding like <see cref="NumPaddingTokens"/>, which does not include them.
    /// </summary>
    public int[]? SegmentPadding { get; init; }

    /// <summary>[T] index of each token in the global batch, the coordinate of the counter-based dropout (D12).</summary>
    public required long[] GlobalTokenIndex { get; init; }

    /// <summary>Number of positions whose label is not <see cref="IgnoreIndex"/>.</summary>
    public required int NumTargetTokens { get; init; }

    /// <summary>Length of the row.</summary>
    public int NumTokens => TokenIds.Length;

    /// <summary>True when rows, sample borders and padding are those of <paramref name="other"/>, whatever the tokens.</summary>
    public bool HasShapeOf(MicroBatch other) =>
        NumTokens == other.NumTokens && NumPaddingTokens == other.NumPaddingTokens && CuSeqLens.AsSpan().SequenceEqual(other.CuSeqLens)
        && (SegmentPadding ?? []).AsSpan().SequenceEqual(other.SegmentPadding ?? []);

    /// <summary>Longest segment.</summary>
    public int MaxSeqLen
    {
        get
        {
            var longest = 0;
            for (var i = 1; i < CuSeqLens.Length; i++) longest = Math.Max(longest, CuSeqLens[i] - CuSeqLens[i - 1]);
            return longest;
        }
    }
}

/// <summary>
/// All micro-batches of one optimizer step for one data-parallel rank, with the token counts that scale the loss (D8).
/// </summary>
/// <param name="Index">0-based index of the global batch in the run; iteration = Index + 1.</param>
/// <param name="MicroBatches">This rank's micro-batches in order.</param>
/// <param name="NumMicroBatchesGlobal">Micro-batches of the global batch over all data-parallel ranks.</param>
/// <param name="NumTargetTokensGlobal">Target tokens (loss weights summed where there are any) of the global batch over all data-parallel ranks.</param>
/// <param name="NumSamplesGlobal">Samples (or packs) of the global batch; added to "consumed samples".</param>
/// <param name="Hash">XxHash64 of the global batch's sample indices and token ids: the same in every layout.</param>
public sealed record GlobalBatch(
    long Index,
    IReadOnlyList<MicroBatch> MicroBatches,
    int NumMicroBatchesGlobal,
    double NumTargetTokensGlobal,
    int NumSamplesGlobal,
    ulong Hash)
{
    /// <summary>Index of this rank's first micro-batch in the global order; the others follow it.</summary>
    public required int FirstMicroBatchIndex { get; init; }

    /// <summary>Tensors of this rank's part of each micro-batch, in pinned memory; null where they are made when they are needed.</summary>
    public IReadOnlyList<StagedMicroBatch>? Staged { get; init; }

    /// <summary>Of a stream: where it goes on behind this batch, as a checkpoint holds it. Null for planned data, whose position is the index.</summary>
    public string? NextCursor { get; init; }
}

/// <summary>
/// The planned sequence of global batches. A pure function of (data fingerprint, settings, seed): the sequence does not depend on the
/// data-parallel size, so a run that changes layout continues with the same batches (D12).
/// </summary>
public interface IGlobalBatchSource
{
    /// <summary>Identifies the plan; ranks refuse to start when hashes differ.</summary>
    ulong PlanHash { get; }

    /// <summary>Global batches in one epoch; long.MaxValue for an endless stream.</summary>
    long NumBatchesPerEpoch { get; }

    /// <summary>This rank's share of global batch <paramref name="index"/>; epochs follow one another without end.</summary>
    GlobalBatch Get(long index);
}
