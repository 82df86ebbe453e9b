using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Keys and values of tokens that a model has already seen, so that generation computes each token once. Absent in training; when a
/// <see cref="ForwardContext"/> has one, every layer's attention asks it.
/// </summary>
public interface IAttentionCache
{
    /// <summary>
    /// Takes in the keys and values of the row and, where there are earlier tokens, attends to them. Called once per layer in each forward
    /// pass, inside a dispose scope of the caller.
    /// </summary>
    /// <param name="q_TND">[T, N, D], rotated.</param>
    /// <param name="k_TGD">[T, G, D], rotated; copied.</param>
    /// <param name="v_TGD">[T, G, D]; copied.</param>
    /// <returns>[T, N, D] contiguous; null when no sequence of the row has earlier tokens, so that ordinary attention gives the result.</returns>
    Tensor? Attend(AttentionShape shape, Tensor q_TND, Tensor k_TGD, Tensor v_TGD);
}
