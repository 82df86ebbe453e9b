using Megatron.Compute.Configuration;

namespace Megatron.Compute.Training;

/// <summary>
/// Floating-point operations of a training step by the closed formula that the reference prints as throughput: matrix products of the
/// forward and twice that for the backward, attention counted causal (half), recompute not counted.
/// </summary>
public static class ModelFlops
{
    /// <summary>
    /// Operations for <paramref name="numTokens"/> tokens in sequences of <paramref name="seqLength"/>:
    /// tokens × (12·L·H·(F·1.5 or k·F_moe·1.5 + F_shared·1.5) + 12·L·H²·(1 + g/n + s/(2H))·(n·d/H) + 6·H·V).
    /// </summary>
    public static double PerStep(ModelConfig model, long numTokens, int seqLength)
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
        var head = 6 * hidden * model.VocabSize;
        return numTokens * (mlp + attention + head);
    }
}
