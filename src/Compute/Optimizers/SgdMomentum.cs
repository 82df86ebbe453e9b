using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// Stochastic gradient descent with momentum and L2 decay: b = μ·b + (g + wd·p); p −= lr·b. Not decoupled, as in the reference.
/// </summary>
public static class SgdMomentum
{
    /// <summary>One step in libtorch operations, in place, on 1-D fp32 ranges of one length; the gradient is read only.</summary>
    /// <param name="momentum">b, zero before the first step.</param>
    /// <param name="gradientFactor">Clip factor divided by the loss scale.</param>
    public static void Reference(
        Tensor parameter, Tensor gradient, Tensor momentum, double learningRate, double weightDecay, double mu, double gradientFactor)
    {
        momentum.mul_(mu).add_(gradient, alpha: gradientFactor);
        if (weightDecay != 0) momentum.add_(parameter, alpha: weightDecay);
        parameter.add_(momentum, alpha: -learningRate);
    }
}
