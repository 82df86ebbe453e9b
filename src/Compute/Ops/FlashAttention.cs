using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>libtorch's own flash kernel: no [S, S] matrix in memory, grouped heads not repeated, no dropout.</summary>
internal sealed class FlashAttention(AttentionShape shape) : IAttentionKernel
{
    private const int Output = 0, LogSumExp = 1;

    /// <summary>True when the kernel computes tensors like <paramref name="query"/>.</summary>
    public static bool Supports(Tensor query) =>
        query.device.type == DeviceType.CPU && query.dtype is (ScalarType.Float32 or ScalarType.Float64 or ScalarType.BFloat16);

    /// <inheritdoc/>
    public Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (output, logSumExp) = CpuFlashAttention.Forward(
            inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2), isCausal: true, shape.Scale);
        saved.Keep(Output, output);
        saved.Keep(LogSumExp, logSumExp);
        return output.transpose(1, 2).contiguous().MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (gradQuery, gradKey, gradValue) = CpuFlashAttention.Backward(
            gradOutput.transpose(1, 2), inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2),
            saved.Take(Output), saved.Take(LogSumExp), isCausal: true, shape.Scale);
        return new AttentionGradients(
            gradQuery.transpose(1, 2).MoveToOuterDisposeScope(), gradKey.transpose(1, 2).MoveToOuterDisposeScope(), gradValue.transpose(1, 2).MoveToOuterDisposeScope());
    }
}
