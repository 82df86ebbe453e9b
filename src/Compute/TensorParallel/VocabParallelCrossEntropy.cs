using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// Cross-entropy over logits whose vocabulary is split over the tensor-parallel group (arXiv 1909.08053, section 3; numerics 3.1), in
/// plain libtorch operations. The gradient replaces the logits, so that no second [T, V] tensor exists.
/// </summary>
/// <remarks>Shape letters: T tokens, v logits of this rank, those of padding rows included.</remarks>
public static class VocabParallelCrossEntropy
{
    /// <summary>
    /// Sum over tokens of weight · (log Σ exp(z) − z_label), the same on every rank. Over the group: a maximum and two sums of [T].
    /// </summary>
    /// <param name="logits_Tv">fp32 (fp64 for an fp64 model); overwritten.</param>
    /// <param name="labels_T">int64 global ids; negative where there is no target.</param>
    /// <param name="weights_T">fp32 weight of each target, 0 where there is none.</param>
    /// <param name="gradientFactor">With a value, the logits become the gradient of (factor × result), 0 for padding; null leaves them undefined.</param>
    /// <param name="shard">This rank's part of the vocabulary.</param>
    /// <returns>Scalar in the dtype of the logits.</returns>
    public static Tensor Compute(
        Tensor logits_Tv, Tensor labels_T, Tensor weights_T, double? gradientFactor, VocabularyShard shard, ProcessGroup group)
    {
        using var scope = NewDisposeScope();
        shard.MaskPadding(logits_Tv);
        var (rows_T, foreign_T) = shard.Map(labels_T);
        var columns_T1 = rows_T.unsqueeze(1);

        var max_T1 = logits_Tv.amax([1], keepdim: true);
        using (group.AllReduce(max_T1, ReduceOp.Max)) { }
        logits_Tv.sub_(max_T1);
        var target_T = logits_Tv.gather(1, columns_T1).squeeze(1).masked_fill_(foreign_T, 0);
        using (group.AllReduce(target_T, ReduceOp.Sum)) { }
        var expSum_T = logits_Tv.exp_().sum(dim: 1);
        using (group.AllReduce(expSum_T, ReduceOp.Sum)) { }

        var weightsWide_T = weights_T.to_type(logits_Tv.dtype);
        var loss = expSum_T.log().sub_(target_T).mul_(weightsWide_T).sum();
        if (gradientFactor is { } factor)
        {
            var scale_T = weightsWide_T.mul(factor);
            logits_Tv.mul_(scale_T.div(expSum_T).unsqueeze_(1));
            logits_Tv.scatter_add_(1, columns_T1, scale_T.neg().masked_fill_(foreign_T, 0).unsqueeze_(1));
        }
        return loss.MoveToOuterDisposeScope();
    }
}
