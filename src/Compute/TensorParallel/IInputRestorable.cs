using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// A layer that keeps its input for the weight half and can do without it between forward and backward, because whoever made the input makes it
/// again: the norm in front ("layernorm" of selective recompute), or the backward of norm or SwiGLU on a GPU, which writes it beside its gradient.
/// </summary>
public interface IInputRestorable : ILayer
{
    /// <summary>BackwardInput does without the input: it may be put back between the halves.</summary>
    bool TakesInputLate { get; }

    /// <summary>Frees the kept input after Forward.</summary>
    void DiscardInput(Saved saved);

    /// <summary>Puts the same input back before BackwardInput or, where <see cref="TakesInputLate"/>, before BackwardWeight.</summary>
    void RestoreInput(Tensor x, Saved saved);
}
