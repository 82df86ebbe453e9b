using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// <see cref="VocabParallelCrossEntropy"/> on a GPU when the vocabulary is whole on this rank: two passes over 16-bit or fp32 logits, the
/// gradient in their place.
/// </summary>
internal static class CrossEntropyKernel
{
    private const int BlockThreads = 1024;

    /// <summary>True when the kernel computes logits like these.</summary>
    public static bool Supports(Tensor logits_CV, ProcessGroup group) =>
        group.Size == 1 && KernelElement.Supports(logits_CV) && logits_CV.is_contiguous() && logits_CV.shape[1] % KernelElement.VectorLength(logits_CV) == 0
        && KernelElement.IsAligned(logits_CV);

    /// <summary>Sum over rows of weight · cross-entropy, an fp32 scalar.</summary>
    /// <param name="logits_CV">Overwritten by the gradient of (factor × result) when there is a factor.</param>
    public static Tensor Compute(Tensor logits_CV, Tensor labels_C, Tensor weights_C, double? factor)
    {
        using var scope = NewDisposeScope();
        var losses_C = empty(logits_CV.shape[0], ScalarType.Float32, logits_CV.device);
        // A factor of exactly 0 (a micro-batch without targets) still asks for a gradient: zeros.
        if (factor == 0) logits_CV.zero_();
        CudaKernels.Of("cross_entropy.cu", KernelElement.Define(logits_CV)).Launch(
            "cross_entropy", (uint)logits_CV.shape[0], 1, BlockThreads, 0,
            Dispatcher.DataPointer(logits_CV), Dispatcher.DataPointer(labels_C), Dispatcher.DataPointer(weights_C), Dispatcher.DataPointer(losses_C),
            logits_CV.shape[1], CudaKernels.Float(factor ?? 0));
        return losses_C.sum().MoveToOuterDisposeScope();
    }
}
