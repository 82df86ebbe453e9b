namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// The 1F1B schedule (PipeDream-Flush, arXiv 2006.09503; arXiv 2104.04473, figure 4): stage s of p runs p − s − 1 forwards ahead, then
/// one forward and one backward in turn, then the remaining backwards. It saves at most min(p − s, micro-batches) micro-batches and idles
/// for (p − 1)/(m + p − 1) of the step.
/// </summary>
public static class OneForwardOneBackward
{
    /// <summary>The actions of stage <paramref name="stage"/> of <paramref name="numStages"/>.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank, at least 1.</param>
    public static IReadOnlyList<PipelineAction> Build(int numStages, int stage, int numMicroBatches)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(numMicroBatches, 1);
        var shape = new PipelineShape(numStages, 1);
        var numWarmup = Math.Min(numStages - stage - 1, numMicroBatches);
        var actions = new List<PipelineAction>(7 * numMicroBatches);
        for (var microBatch = 0; microBatch < numWarmup; microBatch++) ForwardOnly.AddForward(actions, shape, stage, microBatch, 0);
        for (var microBatch = 0; microBatch < numMicroBatches; microBatch++)
        {
            if (microBatch + numWarmup < numMicroBatches) ForwardOnly.AddForward(actions, shape, stage, microBatch + numWarmup, 0);
            AddBackward(actions, shape, stage, microBatch, 0);
        }
        return actions;
    }

    internal static void AddBackward(List<PipelineAction> actions, PipelineShape shape, int stage, int microBatch, int chunk)
    {
        if (!shape.IsLast(stage, chunk)) actions.Add(new PipelineAction(PipelineActionKind.ReceiveBackward, microBatch, chunk));
        actions.Add(new PipelineAction(PipelineActionKind.BackwardInput, microBatch, chunk));
        // The stage before waits for this gradient: send it before the weight half.
        if (!shape.IsFirst(stage, chunk)) actions.Add(new PipelineAction(PipelineActionKind.SendBackward, microBatch, chunk));
        actions.Add(new PipelineAction(PipelineActionKind.BackwardWeight, microBatch, chunk));
    }
}
