using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>
/// Attention on CPU without the [S, S] score matrix: libtorch's tiled kernel (FlashAttention-2, arXiv 2307.08691, algorithm 1) and its backward.
/// Results do not depend on tiles beyond rounding. Heads of keys and values may be fewer than those of queries (grouped heads, not expanded).
/// </summary>
public static class CpuFlashAttention
{
    /// <summary>softmax(scale · q kᵀ [+ causal mask]) v.</summary>
    /// <param name="q_BHSD">[B, H, S, D], fp32, fp64 or bf16; last dimension contiguous.</param>
    /// <param name="k_BHTD">[B, Hkv, T, D]; Hkv divides H.</param>
    /// <param name="v_BHTD">[B, Hkv, T, D].</param>
    /// <param name="isCausal">Query i sees keys 0..i (aligned at the first key).</param>
    /// <param name="scale">Usually 1/sqrt(D).</param>
    /// <returns>Output [B, H, S, D] in the input's dtype, and the row-wise log-sum-exp that <see cref="Backward"/> needs.</returns>
    public static (Tensor Output, Tensor LogSumExp) Forward(Tensor q_BHSD, Tensor k_BHTD, Tensor v_BHTD, bool isCausal, double scale)
    {
        var results = Dispatcher.Call("aten::_scaled_dot_product_flash_attention_for_cpu", "", 2,
            q_BHSD, k_BHTD, v_BHTD, 0.0, isCausal, StableValue.Optional((Tensor?)null), StableValue.Optional(scale));
        return (results[0], results[1]);
    }

    /// <summary>Gradients of <see cref="Forward"/>.</summary>
    /// <param name="gradOutput_BHSD">[B, H, S, D].</param>
    /// <returns>Gradients of q, k and v in their shapes and dtype.</returns>
    public static (Tensor GradQ, Tensor GradK, Tensor GradV) Backward(
        Tensor gradOutput_BHSD, Tensor q_BHSD, Tensor k_BHTD, Tensor v_BHTD, Tensor output_BHSD, Tensor logSumExp, bool isCausal, double scale)
    {
        var results = Dispatcher.Call("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "", 3,
            gradOutput_BHSD, q_BHSD, k_BHTD, v_BHTD, output_BHSD, logSumExp, 0.0, isCausal, StableValue.Optional((Tensor?)null), StableValue.Optional(scale));
        return (results[0], results[1], results[2]);
    }
}
