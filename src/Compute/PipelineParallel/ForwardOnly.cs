namespace Megatron.Compute.PipelineParallel;

/// <summary>The schedule of an evaluation: every micro-batch through every virtual stage, no backward; nothing stays saved.</summary>
public static class ForwardOnly
{
    /// <summary>The actions of stage <paramref name="stage"/>.</summary>
    /// <param name="numMicroBatches">Micro-batches on this data-parallel rank, at least 1.</param>
    public static IReadOnlyList<PipelineAction> Build(PipelineShape shape, int stage, int numMicroBatches)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(numMicroBatches, 1);
        var actions = new List<PipelineAction>(3 * numMicroBatches * shape.NumChunks);
        // In groups of NumStages micro-batches, so that with several chunks the first stage gets a group back when it has sent it all.
        for (var begin = 0; begin < numMicroBatches; begin += shape.NumStages)
            for (var chunk = 0; chunk < shape.NumChunks; chunk++)
                for (var microBatch = begin; microBatch < Math.Min(begin + shape.NumStages, numMicroBatches); microBatch++)
                    AddForward(actions, shape, stage, microBatch, chunk);
        return actions;
    }

    /// <summary>Receive (if any), forward, send (if any) of one micro-batch in one chunk.</summary>
    internal static void AddForward(List<PipelineAction> actions, PipelineShape shape, int stage, int microBatch, int chunk)
    {
        if (!shape.IsFirst(stage, chunk)) actions.Add(new PipelineAction(PipelineActionKind.ReceiveForward, microBatch, chunk));
        actions.Add(new PipelineAction(PipelineActionKind.Forward, microBatch, chunk));
        if (!shape.IsLast(stage, chunk)) actions.Add(new PipelineAction(PipelineActionKind.SendForward, microBatch, chunk));
    }
}
