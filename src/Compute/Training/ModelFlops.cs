using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Training;

/// <summary>
/// Floating-point operations of a training step by the closed formula that the reference prints as throughput: matrix products of the
/// forward and twice that for the backward, attention counted causal (half), recompute not counted. Counted over the samples that are
/// really there, so that short or packed samples do not inflate the figure.
/// </summary>
public static class ModelFlops
{
    /// <summary>Operations for this rank's micro-batches; padding is not counted.</summary>
    public static double Of(ModelConfig model, GlobalBatch batch)
    {
        var total = 0.0;
        foreach (var microBatch in batch.MicroBatches)
        {
            var numTokens = microBatch.NumTokens - microBatch.NumPaddingTokens;
            for (var i = 1; i < microBatch.CuSeqLens.Length && microBatch.CuSeqLens[i - 1] < numTokens; i++)
                total += OfSequence(model, microBatch.CuSeqLens[i] - microBatch.CuSeqLens[i - 1] - (microBatch.SegmentPadding?[i - 1] ?? 0));
        }
        return total;
    }

    /// <summary>
    /// Operations for one sequence of <c>s</c> tokens: s × (12·L·H·(F·1.5 or k·F_moe·1.5 + F_shared·1.5)
    /// + 12·L·H²·(1 + g/n + s/(2H))·(n·d/H) + 6·H·V).
    /// </summary>
    public static double OfSequence(ModelConfig model, int seqLength)
    {
        double hidden = model.HiddenSize, heads = model.NumAttentionHeads;
        var mlp = 0.0;
        for (var layer = 0; layer < model.NumLayers; layer++)
        {
            var width = model.IsMoeLayer(layer) && model.Moe is { } moe
                ? (double)moe.TopK * moe.FfnHiddenSize + (moe.SharedExpertFfnHiddenSize ?? 0)
                : model.FfnHiddenSize;
            mlp += 12 * hidden * width * 1.5;
        }
        var attention = 12 * model.NumLayers * hidden * hidden
            * (1 + model.NumQueryGroups / heads + seqLength / (2 * hidden)) * (heads * model.KvChannels / hidden);
        return seqLength * (mlp + attention + 6 * hidden * model.VocabSize);
    }
}
