namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// ZB-H1 (arXiv 2401.10241, section 2.1): 1F1B whose weight-gradient halves fill the time in which a stage would wait for a gradient. Stage
/// s keeps s weight halves back, so that every stage saves min(p, m) micro-batches, as many as the first stage of 1F1B, and idles for
/// (p − 1)(forward + input half − weight half) instead of (p − 1)(forward + both halves).
/// </summary>
public static class ZeroBubble
{
    /// <summary>The actions of all stages.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank, at least 1.</param>
    public static IReadOnlyList<IReadOnlyList<PipelineAction>> Build(int numStages, int numMicroBatches)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(numMicroBatches, 1);
        var orders = Enumerable.Range(0, numStages).Select(stage => Order(numStages, stage, numMicroBatches)).ToArray();
        return PipelineTimeline.Of(orders, new PipelineShape(numStages, 1), PipelineCosts.Equal).WithTransfers();
    }

    private static List<PipelineAction> Order(int numStages, int stage, int numMicroBatches)
    {
        var numWarmup = Math.Min(numStages - stage - 1, numMicroBatches);
        var order = new List<PipelineAction>(3 * numMicroBatches);
        for (var i = 0; i < numWarmup; i++) order.Add(new PipelineAction(PipelineActionKind.Forward, i, 0));
        for (var i = 0; i < numMicroBatches; i++)
        {
            if (numWarmup + i < numMicroBatches) order.Add(new PipelineAction(PipelineActionKind.Forward, numWarmup + i, 0));
            order.Add(new PipelineAction(PipelineActionKind.BackwardInput, i, 0));
            if (i >= stage) order.Add(new PipelineAction(PipelineActionKind.BackwardWeight, i - stage, 0));
        }
        for (var i = Math.Max(0, numMicroBatches - stage); i < numMicroBatches; i++) order.Add(new PipelineAction(PipelineActionKind.BackwardWeight, i, 0));
        return order;
    }
}
