using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// cuDNN's attention on a GPU: the fastest kernel for equally long segments (its plans are cached per shape). bf16 and fp16, no dropout.
/// </summary>
internal sealed class CudnnAttention(AttentionShape shape) : IAttentionKernel
{
    private const int Output = 0, LogSumExp = 1, PhiloxSeed = 2, PhiloxOffset = 3;

    /// <summary>True when the kernel computes tensors like <paramref name="query"/>.</summary>
    public static bool Supports(Tensor query) =>
        query.device_type == DeviceType.CUDA && query.dtype is ScalarType.BFloat16 or ScalarType.Float16 && query.shape[^1] % 8 == 0 && query.shape[^1] <= 128;

    /// <inheritdoc/>
    public Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (output, state) = CudaAttention.CudnnForward(
            inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2), shape.Scale);
        saved.Keep(Output, output);
        saved.Keep(LogSumExp, state.LogSumExp);
        if (state.PhiloxSeed is not null) saved.Keep(PhiloxSeed, state.PhiloxSeed);
        if (state.PhiloxOffset is not null) saved.Keep(PhiloxOffset, state.PhiloxOffset);
        return output.transpose(1, 2).contiguous().MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var state = new CudnnAttentionState(saved.Take(LogSumExp), TakeIfThere(saved, PhiloxSeed), TakeIfThere(saved, PhiloxOffset));
        var (gradQuery, gradKey, gradValue) = CudaAttention.CudnnBackward(
            gradOutput.transpose(1, 2), inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2),
            saved.Take(Output), state, shape.Scale);
        return new AttentionGradients(
            gradQuery.transpose(1, 2).MoveToOuterDisposeScope(), gradKey.transpose(1, 2).MoveToOuterDisposeScope(), gradValue.transpose(1, 2).MoveToOuterDisposeScope());
    }

    private static Tensor? TakeIfThere(Saved saved, int slot) => saved.Has(slot) ? saved.Take(slot) : null;
}
