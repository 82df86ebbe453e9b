using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// What the unfused kernels share: scores by a matrix product, and the order of heads in which those of a group stand in one matrix, so
/// that nothing is repeated.
/// </summary>
/// <remarks>Shape letters: B batch, S queries, K keys, N query heads, G key/value heads, R = N / G, D channels, b = B·G.</remarks>
internal sealed class AttentionScores(AttentionShape shape, AttentionOptions options)
{
    /// <summary>scale · q kᵀ, −infinity at later keys when causal (then K = S); fp32 where the softmax of a 16-bit type is asked for in fp32.</summary>
    /// <param name="query_bRSD">[b, R·S, D].</param>
    /// <param name="key_bKD">[b, K, D].</param>
    /// <returns>[b, R·S, K].</returns>
    public Tensor Compute(Tensor query_bRSD, Tensor key_bKD, bool isCausal)
    {
        using var scope = NewDisposeScope();
        var layerNumber = options.QueryKeyLayerScaling ? shape.LayerIndex + 1 : 1;
        var scores = query_bRSD.mul(shape.Scale / layerNumber).bmm(key_bKD.transpose(1, 2));
        if (isCausal)
        {
            var seqLen = key_bKD.shape[1];
            scores.view(scores.shape[0], -1, seqLen, seqLen).add_(CausalMask(seqLen, scores.dtype, scores.device));
        }
        var isWide = scores.element_size() >= 4;
        if (!isWide && (options.SoftmaxInFp32 || layerNumber > 1)) scores = scores.to_type(ScalarType.Float32);
        if (layerNumber > 1) scores.mul_(layerNumber);
        return scores.MoveToOuterDisposeScope();
    }

    /// <summary>[B, S, heads, D] to [B·G, R·S, D]: the heads of a group one after another.</summary>
    public Tensor GroupHeads(Tensor x)
    {
        var (batch, seqLen, heads) = (x.shape[0], x.shape[1], x.shape[2]);
        return x.transpose(1, 2).reshape(batch * shape.NumGroups, heads / shape.NumGroups * seqLen, x.shape[3]);
    }

    /// <summary>The inverse of <see cref="GroupHeads"/>, as a view.</summary>
    /// <param name="batchSize">B.</param>
    /// <param name="seqLen">S.</param>
    public static Tensor UngroupHeads(Tensor x, long batchSize, long seqLen) => x.view(batchSize, -1, seqLen, x.shape[2]).transpose(1, 2);

    /// <summary>[S, S]: 0 on and below the diagonal, −infinity above.</summary>
    private static Tensor CausalMask(long seqLen, ScalarType dtype, Device device) =>
        full([seqLen, seqLen], double.NegativeInfinity, dtype, device).triu(1);
}
