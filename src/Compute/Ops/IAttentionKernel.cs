using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Query [B, S, N, D], key and value [B, S, G, D] of one segment group, as views.</summary>
internal readonly record struct AttentionInputs(Tensor Query, Tensor Key, Tensor Value);

/// <summary>Computes attention of equally long segments. Called inside a dispose scope of the caller.</summary>
internal interface IAttentionKernel
{
    /// <summary>[B, S, N, D] contiguous; keeps in <paramref name="saved"/> what the backward needs beside the inputs.</summary>
    Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved);

    /// <summary>The three gradients in the shapes of the inputs.</summary>
    /// <param name="gradOutput">[B, S, N, D].</param>
    AttentionGradients Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, Saved saved);
}
