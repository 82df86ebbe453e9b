namespace Megatron.Compute.Training;

/// <summary>
/// The one place that turns summed cross-entropies into the training loss (DESIGN D8; numerics 3.5). Pure. Nobody else divides:
/// data-parallel reduction is a plain sum.
/// </summary>
public static class LossScaling
{
    /// <summary>
    /// Factor of one micro-batch: gradients are those of Σ over micro-batches of factor × (summed cross-entropy).
    /// </summary>
    /// <param name="perTokenLoss">
    /// True: every target of the global batch weighs the same (1 / its number). False: a mean over each micro-batch's targets, then over the
    /// micro-batches of the global batch.
    /// </param>
    /// <param name="numTargetTokensGlobal">Weight of all targets of the global batch, over all data-parallel ranks.</param>
    /// <param name="numTargetTokens">Weight of this micro-batch's targets.</param>
    /// <param name="numMicroBatchesGlobal">Micro-batches of the global batch, over all data-parallel ranks.</param>
    /// <param name="lossScale">fp16 loss scale, else 1.</param>
    /// <returns>0 for a micro-batch without targets: it adds exactly nothing.</returns>
    public static double Factor(
        bool perTokenLoss, double numTargetTokensGlobal, double numTargetTokens, int numMicroBatchesGlobal, double lossScale)
    {
        var divisor = perTokenLoss ? numTargetTokensGlobal : numTargetTokens * numMicroBatchesGlobal;
        return divisor == 0 ? 0 : lossScale / divisor;
    }

    /// <summary>Weight of auxiliary losses: they never see token counts or the sizes of TP and CP.</summary>
    public static double AuxiliaryFactor(int numMicroBatchesGlobal, double lossScale) => lossScale / numMicroBatchesGlobal;
}
