using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary><see cref="SgdMomentum"/> on a GPU: one launch over a flat range, with the write-back of the weight in the model dtype.</summary>
internal static class SgdMomentumKernel
{
    private const int BlockThreads = 256, ElementsPerThread = 4;

    /// <summary>One step, in place; arguments as in <see cref="SgdMomentum.Reference"/>.</summary>
    /// <param name="model">The weights in the model dtype; the same tensor as <paramref name="master"/> for an fp32 model.</param>
    /// <param name="gradientFactor">See <see cref="GradientNormKernel.ClipFactor"/>: NaN leaves everything as it is.</param>
    public static void Step(
        Tensor master, Tensor gradient, Tensor momentum, Tensor model, double learningRate, double weightDecay, double mu, Tensor gradientFactor)
    {
        var count = master.numel();
        if (count == 0) return;
        const long perBlock = BlockThreads * ElementsPerThread;
        CudaKernels.Of("sgd.cu", KernelElement.Define(model)).Launch(
            "sgd", (uint)((count + perBlock - 1) / perBlock), 1, BlockThreads, 0,
            Dispatcher.DataPointer(master), Dispatcher.DataPointer(gradient), Dispatcher.DataPointer(momentum), Dispatcher.DataPointer(model), count,
            Dispatcher.DataPointer(gradientFactor), CudaKernels.Float(mu), CudaKernels.Float(learningRate), CudaKernels.Float(weightDecay));
    }
}
