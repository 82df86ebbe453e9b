using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// A block by matrix products: the reference, in every dtype and with dropout. Nothing of the size of the scores is kept; the backward
/// computes them again and normalises them by the log-sum-exp over all keys (arXiv 2307.08691, algorithm 2).
/// </summary>
/// <remarks>Shape letters: B batch, S queries, K keys, N query heads, G key/value heads, R = N / G, D channels, b = B·G.</remarks>
internal sealed class UnfusedBlockAttention(AttentionShape shape, AttentionOptions options, double dropout, long seed) : IBlockAttention
{
    private readonly AttentionScores scores = new(shape, options);
    private readonly AttentionKeep decisions = new(shape, dropout, seed);

    /// <inheritdoc/>
    public (Tensor Output, Tensor LogSumExp) Forward(RingBlock block, AttentionInputs inputs, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var query_bRSD = scores.GroupHeads(inputs.Query);
        var scores_bRSK = Wide(scores.Compute(query_bRSD, scores.GroupHeads(inputs.Key), block.Part == RingPart.Own));
        var logSumExp_bRS1 = scores_bRSK.logsumexp(-1, keepdim: true);
        var weights_bRSK = Drop(scores_bRSK.sub_(logSumExp_bRS1).exp_(), block, context);
        var output_bRSD = weights_bRSK.to_type(query_bRSD.dtype).bmm(scores.GroupHeads(inputs.Value));
        return (
            Ungroup(output_bRSD, block).MoveToOuterDisposeScope(),
            Ungroup(logSumExp_bRS1, block).squeeze(-1).MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(RingBlock block, AttentionInputs inputs, AttentionResult result, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var (query_bRSD, key_bKD, value_bKD) = (scores.GroupHeads(inputs.Query), scores.GroupHeads(inputs.Key), scores.GroupHeads(inputs.Value));
        var gradOutput_bRSD = scores.GroupHeads(result.GradOutput);
        var scores_bRSK = Wide(scores.Compute(query_bRSD, key_bKD, block.Part == RingPart.Own));
        var probabilities_bRSK = scores_bRSK.sub_(scores.GroupHeads(result.LogSumExp.unsqueeze(-1))).exp_();
        var weights_bRSK = Drop(probabilities_bRSK, block, context);
        var gradValue = weights_bRSK.to_type(query_bRSD.dtype).transpose(1, 2).bmm(gradOutput_bRSD);

        // dS = P ∘ (dP − rowsum(dO ∘ O)), the row sum being that of P ∘ dP over all keys.
        var rowSum_bRS1 = Wide(gradOutput_bRSD).mul(Wide(scores.GroupHeads(result.Output))).sum(-1, keepdim: true);
        var gradWeights_bRSK = Drop(Wide(gradOutput_bRSD.bmm(value_bKD.transpose(1, 2))), block, context);
        var gradScores_bRSK = gradWeights_bRSK.sub(rowSum_bRS1).mul_(probabilities_bRSK).to_type(query_bRSD.dtype);
        var gradQuery = gradScores_bRSK.bmm(key_bKD).mul_(shape.Scale);
        var gradKey = gradScores_bRSK.transpose(1, 2).bmm(query_bRSD).mul_(shape.Scale);
        return new AttentionGradients(
            Ungroup(gradQuery, block).MoveToOuterDisposeScope(),
            UngroupKeys(gradKey, block).MoveToOuterDisposeScope(), UngroupKeys(gradValue, block).MoveToOuterDisposeScope());
    }

    /// <summary>The same decisions as in a whole row; the values themselves when nothing is dropped.</summary>
    private Tensor Drop(Tensor values_bRSK, RingBlock block, ForwardContext context)
    {
        if (dropout <= 0 || !context.IsTraining) return values_bRSK;
        var keep = decisions.Make(context, context.Batch, block.Group, block.Queries, block.KeyPositions, values_bRSK.device);
        return values_bRSK.mul(keep).mul_(1.0 / (1.0 - dropout));
    }

    private static Tensor Wide(Tensor x) => x.element_size() >= 4 ? x : x.to_type(ScalarType.Float32);

    private static Tensor Ungroup(Tensor x, RingBlock block) => AttentionScores.UngroupHeads(x, block.Group.BatchSize, block.Queries.Length);

    private static Tensor UngroupKeys(Tensor x, RingBlock block) => AttentionScores.UngroupHeads(x, block.Group.BatchSize, block.Keys.Length);
}
