using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>A block by libtorch's flash kernel for CPUs, which gives and takes the log-sum-exp. No dropout.</summary>
internal sealed class FlashBlockAttention(AttentionShape shape) : IBlockAttention
{
    /// <inheritdoc/>
    public (Tensor Output, Tensor LogSumExp) Forward(RingBlock block, AttentionInputs inputs, ForwardContext context)
    {
        var (output, logSumExp) = CpuFlashAttention.Forward(
            inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2), block.Part == RingPart.Own, shape.Scale);
        return (output.transpose(1, 2), logSumExp.transpose(1, 2));
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(RingBlock block, AttentionInputs inputs, AttentionResult result, ForwardContext context)
    {
        var (gradQuery, gradKey, gradValue) = CpuFlashAttention.Backward(
            result.GradOutput.transpose(1, 2), inputs.Query.transpose(1, 2), inputs.Key.transpose(1, 2), inputs.Value.transpose(1, 2),
            result.Output.transpose(1, 2), result.LogSumExp.transpose(1, 2), block.Part == RingPart.Own, shape.Scale);
        return new AttentionGradients(gradQuery.transpose(1, 2), gradKey.transpose(1, 2), gradValue.transpose(1, 2));
    }
}
