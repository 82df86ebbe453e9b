using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>The numbers of one AdamW step that are the same for all its elements.</summary>
/// <param name="LearningRate">lr of the step.</param>
/// <param name="WeightDecay">Decoupled decay; 0 for norms and biases.</param>
/// <param name="StepCount">1-based step for the bias corrections.</param>
public readonly record struct AdamWStep(double LearningRate, double WeightDecay, double Beta1, double Beta2, double Epsilon, long StepCount);

/// <summary>
/// Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2), on flat fp32 ranges:
/// m = β1 m + (1−β1) g; v = β2 v + (1−β2) g²; p −= lr·( m̂/(√v̂ + ε) + wd·p ).
/// </summary>
public static class AdamW
{
    /// <summary>
    /// One step in libtorch operations, in place; the gradient is read only. All tensors are 1-D fp32 of one length, which the caller
    /// keeps small enough for the cache: one temporary of that length is made.
    /// </summary>
    /// <param name="gradientFactor">Clip factor divided by the loss scale: the gradient is used as factor · g.</param>
    public static void Reference(Tensor parameter, Tensor gradient, Tensor expAvg, Tensor expAvgSq, in AdamWStep step, double gradientFactor)
    {
        var correction1 = 1 - Math.Pow(step.Beta1, step.StepCount);
        var correction2 = 1 - Math.Pow(step.Beta2, step.StepCount);
        // The clip factor goes into the scalars, which saves a pass over the gradient.
        expAvg.mul_(step.Beta1).add_(gradient, alpha: (1 - step.Beta1) * gradientFactor);
        expAvgSq.mul_(step.Beta2).addcmul_(gradient, gradient, (1 - step.Beta2) * gradientFactor * gradientFactor);
        using var denominator = expAvgSq.sqrt();
        denominator.mul_(1 / Math.Sqrt(correction2)).add_(step.Epsilon);
        // p + (−lr·wd)·p and not p·(1 − lr·wd): in fp32 the factor 1 − 1e-6 would be off by several per cent of the decay.
        if (step.WeightDecay != 0) parameter.add_(parameter, alpha: -step.LearningRate * step.WeightDecay);
        parameter.addcdiv_(expAvg, denominator, -step.LearningRate / correction1);
    }
}
