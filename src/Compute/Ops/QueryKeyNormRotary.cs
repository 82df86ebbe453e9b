using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Weights of the norms of q and k, one for all query heads and one for all key heads, each [D].</summary>
public readonly record struct QueryKeyNorm(Tensor QueryWeight, Tensor KeyWeight, double Epsilon);

/// <summary>
/// What lies between the fused projection and attention: RMSNorm of every query and key head where the model has it (Qwen3), then the rotation.
/// In plain libtorch operations, and on a GPU one kernel each way (<c>Kernels/qk_norm_rotary.cu</c>).
/// </summary>
/// <remarks>Shape letters: T tokens, N query heads, G key/value heads, D channels of a head, A = N + G, Q = N + 2G.</remarks>
public static class QueryKeyNormRotary
{
    /// <summary>
    /// Queries and keys as attention takes them. With a norm they are fresh; without one the rotation happens in place.
    /// </summary>
    /// <param name="heads_TQD">The projection, N query heads first, then keys, then values.</param>
    /// <param name="numHeads">N.</param>
    /// <param name="numGroups">G.</param>
    /// <returns>[T, A, D], and the reciprocal roots [T, A, 1] that the backward needs, null without a norm.</returns>
    public static (Tensor QueryKey, Tensor? InverseRms) Forward(
        Tensor heads_TQD, int numHeads, int numGroups, QueryKeyNorm? norm, RotaryEmbedding rotary, Tensor positions_T)
    {
        var queryKey_TAD = heads_TQD.narrow(1, 0, numHeads + numGroups);
        if (norm is not { } weights)
        {
            rotary.ForwardInPlace(queryKey_TAD, positions_T);
            return (queryKey_TAD, null);
        }
        if (QueryKeyNormRotaryKernel.Supports(heads_TQD))
            return QueryKeyNormRotaryKernel.Forward(heads_TQD, numHeads, numGroups, weights, rotary, positions_T);
        using var weight_AD = WeightOfEachHead(weights, numHeads, numGroups);
        var (normalized, inverseRms) = RmsNorm.Forward(queryKey_TAD, weight_AD, weights.Epsilon);
        rotary.ForwardInPlace(normalized, positions_T);
        return (normalized, inverseRms);
    }

    /// <summary>Gradient of the projection from those of attention's three inputs.</summary>
    /// <param name="gradients">[T, N, D], [T, G, D] and [T, G, D], in any strides.</param>
    /// <param name="raw">Queries and keys [T, A, D] before the norm, with the result of the forward; null without a norm.</param>
    /// <returns>
    /// [T, Q, D] contiguous, and parts [P, 2, D] in fp32 (fp64 for fp64) whose sum over P is the gradients of both weights, null without a norm.
    /// </returns>
    public static (Tensor GradHeads, Tensor? GradWeightParts) Backward(
        AttentionGradients gradients, (Tensor QueryKey, Tensor InverseRms)? raw, QueryKeyNorm? norm, RotaryEmbedding rotary, Tensor positions_T)
    {
        if (QueryKeyNormRotaryKernel.Supports(gradients)) return QueryKeyNormRotaryKernel.Backward(gradients, raw, norm, rotary, positions_T);
        using var scope = NewDisposeScope();
        var (numHeads, numGroups) = ((int)gradients.Query.shape[1], (int)gradients.Key.shape[1]);
        var grad_TQD = cat([gradients.Query, gradients.Key, gradients.Value], 1);
        var gradQueryKey_TAD = grad_TQD.narrow(1, 0, numHeads + numGroups);
        rotary.BackwardInPlace(gradQueryKey_TAD, positions_T);
        if (norm is not { } weights || raw is not { } input) return (grad_TQD.MoveToOuterDisposeScope(), null);
        var (gradRaw, gradWeight_1AD, _) = RmsNorm.Backward(gradQueryKey_TAD, input.QueryKey, WeightOfEachHead(weights, numHeads, numGroups), input.InverseRms);
        gradQueryKey_TAD.copy_(gradRaw);
        var gradWeights_12D = stack([gradWeight_1AD.narrow(1, 0, numHeads).sum(dim: 1), gradWeight_1AD.narrow(1, numHeads, numGroups).sum(dim: 1)], 1);
        return (grad_TQD.MoveToOuterDisposeScope(), gradWeights_12D.MoveToOuterDisposeScope());
    }

    private static Tensor WeightOfEachHead(QueryKeyNorm norm, int numHeads, int numGroups)
    {
        using var scope = NewDisposeScope();
        return cat([norm.QueryWeight.expand(numHeads, -1), norm.KeyWeight.expand(numGroups, -1)], 0).MoveToOuterDisposeScope();
    }
}
