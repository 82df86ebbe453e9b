using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Flash attention over a whole packed row on a GPU, one launch for segments of any lengths. bf16 and fp16, no dropout. The segment of
/// padding at the end is computed like any other; its gradient is zero because its output is never used.
/// </summary>
internal sealed class PackedFlashAttention(AttentionShape shape)
{
    private const int Output = 0, LogSumExp = 1, RandomState = 2, Unused = 3;

    /// <summary>True when the kernel computes tensors like <paramref name="query"/>.</summary>
    public static bool Supports(Tensor query) =>
        query.device_type == DeviceType.CUDA && query.dtype is ScalarType.BFloat16 or ScalarType.Float16 && query.shape[^1] % 8 == 0 && query.shape[^1] <= 256;

    /// <summary>[T, N, D] contiguous.</summary>
    public Tensor Forward(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (output, logSumExp, randomState, unused) = CudaAttention.FlashForward(
            q_TND, k_TGD, v_TGD, Segments(saved.Context), shape.Scale);
        saved.Keep(Output, output);
        saved.Keep(LogSumExp, logSumExp);
        saved.Keep(RandomState, randomState);
        saved.Keep(Unused, unused);
        return output.contiguous().alias().MoveToOuterDisposeScope();
    }

    /// <summary>The three gradients; frees the store.</summary>
    public AttentionGradients Backward(Tensor gradOutput_TND, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (gradQuery, gradKey, gradValue) = CudaAttention.FlashBackward(
            gradOutput_TND.contiguous(), inputs.Query, inputs.Key, inputs.Value, saved.Take(Output), saved.Take(LogSumExp), saved.Take(RandomState),
            saved.Take(Unused), Segments(saved.Context), shape.Scale);
        return new AttentionGradients(gradQuery.MoveToOuterDisposeScope(), gradKey.MoveToOuterDisposeScope(), gradValue.MoveToOuterDisposeScope());
    }

    private static FlashSegments Segments(ForwardContext context)
    {
        var (borders, longest) = (context.WholeCuSeqLens, context.WholeRow.MaxSeqLen);
        return new FlashSegments(borders, borders, longest, longest, IsCausal: true);
    }
}
