using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary><see cref="AdamW"/> on a GPU: one launch over a flat range, with the write-back of the weight in the model dtype.</summary>
internal static class AdamWKernel
{
    private const int BlockThreads = 256, ElementsPerThread = 4;

    /// <summary>One step, in place.</summary>
    /// <param name="model">The weights in the model dtype; the same tensor as <paramref name="master"/> for an fp32 model.</param>
    /// <param name="gradientFactor">See <see cref="GradientNormKernel.ClipFactor"/>: NaN leaves everything as it is.</param>
    public static void Step(Tensor master, Tensor gradient, Tensor expAvg, Tensor expAvgSq, Tensor model, in AdamWStep step, Tensor gradientFactor)
    {
        var count = master.numel();
        if (count == 0) return;
        var correction1 = 1 - Math.Pow(step.Beta1, step.StepCount);
        var correction2 = 1 - Math.Pow(step.Beta2, step.StepCount);
        const long perBlock = BlockThreads * ElementsPerThread;
        CudaKernels.Of("adamw.cu", KernelElement.Define(model)).Launch(
            "adamw", (uint)((count + perBlock - 1) / perBlock), 1, BlockThreads, 0,
            Dispatcher.DataPointer(master), Dispatcher.DataPointer(gradient), Dispatcher.DataPointer(expAvg), Dispatcher.DataPointer(expAvgSq), Dispatcher.DataPointer(model),
            count, Dispatcher.DataPointer(gradientFactor), CudaKernels.Float(step.Beta1), CudaKernels.Float(step.Beta2), CudaKernels.Float(step.Epsilon),
            CudaKernels.Float(step.LearningRate / correction1), CudaKernels.Float(1 / Math.Sqrt(correction2)), CudaKernels.Float(step.LearningRate * step.WeightDecay));
    }
}
