using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Causal scaled dot-product attention of one packed row (DESIGN D14) between the projections of a layer: each segment attends to itself
/// only. The tokens are this rank's; how the others' keys are reached is the implementation's.
/// </summary>
/// <remarks>Shape letters: T tokens of this rank, N query heads, G key/value heads, D channels of a head.</remarks>
public interface ICoreAttention
{
    /// <summary>Attention output.</summary>
    /// <param name="q_TND">[T, N, D], strided is fine; kept for the backward.</param>
    /// <param name="k_TGD">[T, G, D].</param>
    /// <param name="v_TGD">[T, G, D].</param>
    /// <returns>[T, N, D], contiguous.</returns>
    Tensor Forward(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved);

    /// <summary>Gradients of the three inputs, in any strides; frees the store.</summary>
    AttentionGradients Backward(Tensor gradOutput_TND, Saved saved);
}
