namespace Megatron.Compute.PipelineParallel;

/// <summary>The schedule of one stage: each micro-batch forward and backward before the next, so that one is saved at a time.</summary>
public static class NoPipelining
{
    /// <summary>The actions of the only rank.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank, at least 1.</param>
    public static IReadOnlyList<PipelineAction> Build(int numMicroBatches)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(numMicroBatches, 1);
        var actions = new List<PipelineAction>(3 * numMicroBatches);
        for (var microBatch = 0; microBatch < numMicroBatches; microBatch++)
        {
            actions.Add(new PipelineAction(PipelineActionKind.Forward, microBatch, 0));
            actions.Add(new PipelineAction(PipelineActionKind.BackwardInput, microBatch, 0));
            actions.Add(new PipelineAction(PipelineActionKind.BackwardWeight, microBatch, 0));
        }
        return actions;
    }
}
