using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>libtorch's own flash kernel: no [S, S] matrix in memory, no dropout.</summary>
internal sealed class FlashAttention(AttentionShape shape) : IAttentionKernel
{
    /// <summary>True when the kernel computes tensors like <paramref name="query"/>.</summary>
    public static bool Supports(Tensor query) => false;

    /// <inheritdoc/>
    public Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved) => throw new InvalidOperationException($"{shape}");

    /// <inheritdoc/>
    public void Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, AttentionInputs gradients, Saved saved) =>
        throw new InvalidOperationException($"{shape}");
}
