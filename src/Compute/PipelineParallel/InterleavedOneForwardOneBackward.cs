namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// Interleaved 1F1B (arXiv 2104.04473, section 2.2.2): each stage owns v chunks and micro-batches pass in groups of p through chunk after
/// chunk, so that the pipeline fills in steps of a chunk and idles for (p − 1)/(v·m + p − 1) of the step. Stage s runs
/// 2(p − s − 1) + (v − 1)p forwards ahead and saves at most one more at a time.
/// </summary>
public static class InterleavedOneForwardOneBackward
{
    /// <summary>The actions of all stages.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank: a multiple of the stages.</param>
    /// <exception cref="ArgumentException">The stages do not divide the micro-batches.</exception>
    public static IReadOnlyList<IReadOnlyList<PipelineAction>> Build(PipelineShape shape, int numMicroBatches)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(numMicroBatches, 1);
        if (numMicroBatches % shape.NumStages != 0)
            throw new ArgumentException($"The interleaved schedule takes micro-batches in groups of {shape.NumStages} stages; {numMicroBatches} is no multiple.");
        var orders = Enumerable.Range(0, shape.NumStages).Select(stage => Order(shape, stage, numMicroBatches)).ToArray();
        return PipelineTimeline.Of(orders, shape, PipelineCosts.Equal).WithTransfers();
    }

    /// <summary>Forwards that stage <paramref name="stage"/> runs before its first backward.</summary>
    public static int NumWarmup(PipelineShape shape, int stage, int numMicroBatches) =>
        Math.Min(2 * (shape.NumStages - stage - 1) + (shape.NumChunks - 1) * shape.NumStages, numMicroBatches * shape.NumChunks);

    private static List<PipelineAction> Order(PipelineShape shape, int stage, int numMicroBatches)
    {
        var total = numMicroBatches * shape.NumChunks;
        var numWarmup = NumWarmup(shape, stage, numMicroBatches);
        var order = new List<PipelineAction>(3 * total);
        for (var i = 0; i < numWarmup; i++) order.Add(Forward(shape, i));
        for (var i = 0; i < total; i++)
        {
            if (numWarmup + i < total) order.Add(Forward(shape, numWarmup + i));
            var backward = Forward(shape, i);
            var chunk = shape.NumChunks - 1 - backward.Chunk; // backwards meet the chunks from the last to the first
            order.Add(new PipelineAction(PipelineActionKind.BackwardInput, backward.MicroBatch, chunk));
            order.Add(new PipelineAction(PipelineActionKind.BackwardWeight, backward.MicroBatch, chunk));
        }
        return order;
    }

    /// <summary>The i-th forward of every stage: p micro-batches through chunk 0, the same through chunk 1, …, then the next p.</summary>
    private static PipelineAction Forward(PipelineShape shape, int i)
    {
        var (group, inGroup) = Math.DivRem(i, shape.NumStages * shape.NumChunks);
        var (chunk, inChunk) = Math.DivRem(inGroup, shape.NumStages);
        return new PipelineAction(PipelineActionKind.Forward, group * shape.NumStages + inChunk, chunk);
    }
}
