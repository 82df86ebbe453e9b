using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Data;

/// <summary>
/// One sample as the model sees it: token ids and what each position has to predict. Never padded.
/// </summary>
public sealed class EncodedSample
{
    /// <param name="tokenIds">[T] token ids, T ≥ 1.</param>
    /// <param name="labels">[T] shifted labels: the token after position i, or <see cref="MicroBatch.IgnoreIndex"/>.</param>
    /// <param name="lossWeights">[T] weight of each label; null when every target weighs 1.</param>
    public EncodedSample(int[] tokenIds, int[] labels, float[]? lossWeights)
    {
        if (tokenIds.Length == 0 || labels.Length != tokenIds.Length || (lossWeights is not null && lossWeights.Length != tokenIds.Length))
            throw new ArgumentException($"a sample needs equal, non-zero lengths; got {tokenIds.Length} ids, {labels.Length} labels, " +
                $"{lossWeights?.Length.ToString() ?? "no"} weights");
        TokenIds = tokenIds;
        Labels = labels;
        LossWeights = lossWeights;
        for (var i = 0; i < labels.Length; i++)
        {
            if (labels[i] == MicroBatch.IgnoreIndex) continue;
            NumTargetTokens++;
            TargetWeight += lossWeights?[i] ?? 1.0;
        }
    }

    /// <summary>[T] token ids.</summary>
    public int[] TokenIds { get; }

    /// <summary>[T] shifted labels.</summary>
    public int[] Labels { get; }

    /// <summary>[T] loss weights, or null when every target weighs 1.</summary>
    public float[]? LossWeights { get; }

    /// <summary>Tokens of the sample.</summary>
    public int Length => TokenIds.Length;

    /// <summary>Positions that have a target.</summary>
    public int NumTargetTokens { get; }

    /// <summary>Sum of the loss weights over the positions that have a target.</summary>
    public double TargetWeight { get; }

    /// <summary>
    /// A sample from a row whose labels are not shifted (<c>labels[t]</c> belongs to token t, as in Hugging Face data): position t is
    /// given the label of t + 1, the last position none. Weights move with their labels and vanish when all targets weigh 1.
    /// </summary>
    public static EncodedSample FromUnshifted(int[] tokenIds, ReadOnlySpan<int> labels, ReadOnlySpan<float> weights)
    {
        var shifted = new int[tokenIds.Length];
        labels[1..].CopyTo(shifted);
        shifted[^1] = MicroBatch.IgnoreIndex;
        if (weights.IsEmpty) return new EncodedSample(tokenIds, shifted, lossWeights: null);

        var shiftedWeights = new float[tokenIds.Length];
        weights[1..].CopyTo(shiftedWeights);
        var allOne = true;
        for (var i = 0; i < shifted.Length; i++)
        {
            if (shifted[i] == MicroBatch.IgnoreIndex) shiftedWeights[i] = 0;
            else allOne &= shiftedWeights[i] == 1f;
        }
        return new EncodedSample(tokenIds, shifted, allOne ? null : shiftedWeights);
    }

    /// <summary>Adds ids, labels and weights to a content hash.</summary>
    internal void AppendTo(XxHash64 hash)
    {
        hash.Append(MemoryMarshal.AsBytes([TokenIds.Length, LossWeights is null ? 0 : 1]));
        hash.Append(MemoryMarshal.AsBytes(TokenIds.AsSpan()));
        hash.Append(MemoryMarshal.AsBytes(Labels.AsSpan()));
        if (LossWeights is not null) hash.Append(MemoryMarshal.AsBytes(LossWeights.AsSpan()));
    }
}
