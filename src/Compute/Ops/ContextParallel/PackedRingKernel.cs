using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// One flash launch for the whole packed row on a GPU, segments of any lengths; halves of segments are gathered first. bf16 and fp16, no
/// dropout. The segment of padding at the end is computed like any other; its gradient is zero because its output is never used.
/// </summary>
/// <remarks>Shape letters: Q queries and K keys of the step, N query heads, G key/value heads, D channels.</remarks>
internal sealed class PackedRingKernel(AttentionShape shape) : IRingKernel
{
    /// <inheritdoc/>
    public void Forward(RingStep step, AttentionInputs inputs, RingSums sums, ForwardContext context)
    {
        var (query_QND, key_KGD, value_KGD) = Select(step, inputs, context);
        var (output_QND, logSumExp_NQ, randomState, unused) = CudaAttention.FlashForward(query_QND, key_KGD, value_KGD, Segments(step, context), shape.Scale);
        randomState.Dispose();
        unused.Dispose();
        var logSumExp_QN = logSumExp_NQ.transpose(0, 1);
        if (step.Part != RingPart.LastQueries)
        {
            RingSums.Merge(sums.Output, sums.LogSumExp, output_QND, logSumExp_QN, isFirst: step.Part == RingPart.Own);
            return;
        }
        var rows = context.Halves.Second;
        var (partOutput, partLogSumExp) = (sums.Output.index_select(0, rows), sums.LogSumExp.index_select(0, rows));
        RingSums.Merge(partOutput, partLogSumExp, output_QND, logSumExp_QN, isFirst: false);
        sums.Output.index_copy_(0, rows, partOutput);
        sums.LogSumExp.index_copy_(0, rows, partLogSumExp);
    }

    /// <inheritdoc/>
    public void Backward(RingStep step, AttentionInputs inputs, AttentionResult result, AttentionGradients gradients, ForwardContext context)
    {
        var (query_QND, key_KGD, value_KGD) = Select(step, inputs, context);
        var (gradOutput_QND, output_QND) = (Queries(step, result.GradOutput, context), Queries(step, result.Output, context));
        var logSumExp_NQ = Queries(step, result.LogSumExp, context).transpose(0, 1).contiguous();

        // The random state is an argument that the kernel does not read without dropout; any tensor stands for it.
        var (gradQuery, gradKey, gradValue) = CudaAttention.FlashBackward(
            gradOutput_QND, query_QND, key_KGD, value_KGD, output_QND, logSumExp_NQ, logSumExp_NQ, logSumExp_NQ, Segments(step, context), shape.Scale);
        AddRows(gradients.Query, gradQuery, step.Part == RingPart.LastQueries ? context.Halves.Second : null);
        AddRows(gradients.Key, gradKey, step.Part == RingPart.FirstKeys ? context.Halves.First : null);
        AddRows(gradients.Value, gradValue, step.Part == RingPart.FirstKeys ? context.Halves.First : null);
    }

    private static AttentionInputs Select(RingStep step, AttentionInputs inputs, ForwardContext context) =>
        new(Queries(step, inputs.Query, context), Keys(step, inputs.Key, context), Keys(step, inputs.Value, context));

    private static Tensor Queries(RingStep step, Tensor x, ForwardContext context) =>
        step.Part == RingPart.LastQueries ? x.index_select(0, context.Halves.Second) : x;

    private static Tensor Keys(RingStep step, Tensor x, ForwardContext context) =>
        step.Part == RingPart.FirstKeys ? x.index_select(0, context.Halves.First) : x;

    private static FlashSegments Segments(RingStep step, ForwardContext context)
    {
        var (whole, longest) = (context.CuSeqLens, context.Batch.MaxSeqLen);
        return step.Part switch
        {
            RingPart.Own => new FlashSegments(whole, whole, longest, longest, IsCausal: true),
            RingPart.FirstKeys => new FlashSegments(whole, context.Halves.CuSeqLens, longest, longest / 2, IsCausal: false),
            _ => new FlashSegments(context.Halves.CuSeqLens, whole, longest / 2, longest, IsCausal: false),
        };
    }

    /// <summary>Each row of the index is there once, so adding by index has one order.</summary>
    private static void AddRows(Tensor sum, Tensor share, Tensor? rows)
    {
        if (rows is null) sum.add_(share);
        else sum.index_add_(0, rows, share.to_type(sum.dtype), 1);
    }
}
