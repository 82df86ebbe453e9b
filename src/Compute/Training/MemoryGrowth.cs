using Megatron.Compute.Distributed;

namespace Megatron.Compute.Training;

/// <summary>
/// Sees whether a GPU's memory is still being taken after the steps in which everything should have been (docs/adr/0012), and says so once. It reads what
/// all processes hold of the GPU together, so another one's memory counts too.
/// </summary>
/// <param name="usedBytes">Bytes of the GPU that are taken, now.</param>
public sealed class MemoryGrowth(Func<long> usedBytes)
{
    private long? afterWarmup;
    private bool isTold;

    /// <summary>Called after each step of the attempt.</summary>
    /// <param name="step">1 for the attempt's first.</param>
    /// <returns>A warning; null when there is nothing to say.</returns>
    public string? AfterStep(int step)
    {
        if (isTold || step < ParallelState.WarmupSteps) return null;
        var used = usedBytes();
        afterWarmup ??= used;
        if (used <= afterWarmup) return null;
        isTold = true;
        return FormattableString.Invariant(
            $"{(used - afterWarmup) / 1048576.0:F0} MiB more of the GPU's memory are taken after step {step} of this attempt than after step {ParallelState.WarmupSteps}. This process owns several GPUs, ")
            + "and an allocation behind a collective that waits for one of them can hang; if it does, start one process for each GPU (NNODES).";
    }
}
