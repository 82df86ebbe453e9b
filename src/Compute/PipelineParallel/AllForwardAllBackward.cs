namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// The GPipe schedule (arXiv 1811.06965, section 2.3): all forwards, then all backwards. It saves every micro-batch of the step and idles
/// as long as 1F1B; it is there for comparison.
/// </summary>
public static class AllForwardAllBackward
{
    /// <summary>The actions of stage <paramref name="stage"/> of <paramref name="numStages"/>.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank, at least 1.</param>
    public static IReadOnlyList<PipelineAction> Build(int numStages, int stage, int numMicroBatches)
    {
        var shape = new PipelineShape(numStages, 1);
        var actions = new List<PipelineAction>(ForwardOnly.Build(shape, stage, numMicroBatches));
        for (var microBatch = 0; microBatch < numMicroBatches; microBatch++) OneForwardOneBackward.AddBackward(actions, shape, stage, microBatch, 0);
        return actions;
    }
}
