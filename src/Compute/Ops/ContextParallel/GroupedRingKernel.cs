using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>Runs a block kernel on each group of equally long segments of the row. Padding at the end of the row is skipped.</summary>
/// <param name="numRanks">cp.</param>
internal sealed class GroupedRingKernel(IBlockAttention attention, int numRanks) : IRingKernel
{
    private MicroBatch? plannedBatch;
    private SegmentGroup[] plan = [];

    /// <inheritdoc/>
    public void Forward(RingStep step, AttentionInputs inputs, RingSums sums, ForwardContext context)
    {
        foreach (var group in Plan(context.Batch))
        {
            using var scope = NewDisposeScope();
            var block = new RingBlock(group, step.Part, step.Source, numRanks);
            var (output, logSumExp) = attention.Forward(block, Rows(block, inputs), context);
            RingSums.Merge(block.QueryRows(sums.Output), block.QueryRows(sums.LogSumExp), output, logSumExp, isFirst: step.Part == RingPart.Own);
        }
    }

    /// <inheritdoc/>
    public void Backward(RingStep step, AttentionInputs inputs, AttentionResult result, AttentionGradients gradients, ForwardContext context)
    {
        foreach (var group in Plan(context.Batch))
        {
            using var scope = NewDisposeScope();
            var block = new RingBlock(group, step.Part, step.Source, numRanks);
            var rows = new AttentionResult(block.QueryRows(result.GradOutput), block.QueryRows(result.Output), block.QueryRows(result.LogSumExp));
            var shares = attention.Backward(block, Rows(block, inputs), rows, context);
            block.QueryRows(gradients.Query).add_(shares.Query);
            block.KeyRows(gradients.Key).add_(shares.Key);
            block.KeyRows(gradients.Value).add_(shares.Value);
        }
    }

    private static AttentionInputs Rows(RingBlock block, AttentionInputs inputs) =>
        new(block.QueryRows(inputs.Query), block.KeyRows(inputs.Key), block.KeyRows(inputs.Value));

    /// <summary>Remembered for the micro-batch, since every step asks.</summary>
    private SegmentGroup[] Plan(MicroBatch batch)
    {
        if (!ReferenceEquals(plannedBatch, batch)) (plannedBatch, plan) = (batch, SegmentPlan.Make(batch));
        return plan;
    }
}
