using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// <see cref="VocabParallelCrossEntropy"/> on a GPU when the vocabulary is whole on this rank: 16-bit or fp32 logits are read once, and
/// the gradient takes their place.
/// </summary>
internal static class CrossEntropyKernel
{
    private const int BlockThreads = 512, PacksInRegisters = 16, PackBytes = 16, StaticSharedBytes = 1024; // as in cross_entropy.cu

    /// <summary>True when the kernel computes logits like these.</summary>
    public static bool Supports(Tensor logits_CV, ProcessGroup group) =>
        group.Size == 1 && KernelElement.Supports(logits_CV) && logits_CV.is_contiguous() && logits_CV.shape[1] % KernelElement.VectorLength(logits_CV) == 0
        && KernelElement.IsAligned(logits_CV);

    /// <summary>Sum over rows of weight · cross-entropy, an fp32 scalar.</summary>
    /// <param name="logits_CV">Overwritten by the gradient of (factor × result) when there is a factor.</param>
    /// <param name="factor">0-d fp64 on the device, or null.</param>
    public static Tensor Compute(Tensor logits_CV, Tensor labels_C, Tensor weights_C, Tensor? factor)
    {
        using var scope = NewDisposeScope();
        var losses_C = empty(logits_CV.shape[0], ScalarType.Float32, logits_CV.device);
        var kernels = CudaKernels.Of("cross_entropy.cu", KernelElement.Define(logits_CV));
        var packsPerThread = (logits_CV.shape[1] / KernelElement.VectorLength(logits_CV) + BlockThreads - 1) / BlockThreads;
        var packsInShared = Math.Clamp(packsPerThread - PacksInRegisters, 0, (kernels.MaxSharedBytes - StaticSharedBytes) / (BlockThreads * PackBytes));
        kernels.Launch(
            "cross_entropy", (uint)logits_CV.shape[0], 1, BlockThreads, (uint)(packsInShared * BlockThreads * PackBytes),
            Dispatcher.DataPointer(logits_CV), Dispatcher.DataPointer(labels_C), Dispatcher.DataPointer(weights_C), Dispatcher.DataPointer(losses_C),
            logits_CV.shape[1], factor is null ? 0 : Dispatcher.DataPointer(factor), packsInShared);
        return losses_C.sum().MoveToOuterDisposeScope();
    }
}
