using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary><see cref="GradientNorm"/> and <see cref="GradientClipping"/> on a GPU: one pass over the buffer, and the host waits for nothing.</summary>
internal static class GradientNormKernel
{
    private const string File = "gradient_norm.cu";
    private const int BlockThreads = 512, MaxBlocks = 4 * 132; // as many as run at once on a Hopper GPU; others are as correct

    /// <summary>True when the kernel sums ranges of a tensor like this one.</summary>
    public static bool Supports(Tensor flat, IReadOnlyList<FlatRange> ranges) =>
        KernelElement.Supports(flat) && KernelElement.IsAligned(flat) && ranges.All(range => range.Begin % KernelElement.VectorLength(flat) == 0);

    /// <summary>See <see cref="GradientNorm.SumOfSquares"/>.</summary>
    public static Tensor SumOfSquares(Tensor flat, IReadOnlyList<FlatRange> ranges)
    {
        using var scope = NewDisposeScope();
        var total = zeros([], float64, flat.device);
        var partial = empty(MaxBlocks, float64, flat.device);
        var kernels = CudaKernels.Of(File, KernelElement.Define(flat));
        foreach (var range in ranges)
        {
            long perBlock = BlockThreads * KernelElement.VectorLength(flat);
            var blocks = Math.Min(MaxBlocks, (range.Length + perBlock - 1) / perBlock);
            kernels.Launch(
                "sum_of_squares", (uint)blocks, 1, BlockThreads, 0,
                Dispatcher.DataPointer(flat) + range.Begin * flat.element_size(), Dispatcher.DataPointer(partial), range.Length);
            kernels.Launch("add_partials", 1, 1, BlockThreads, 0, Dispatcher.DataPointer(partial), Dispatcher.DataPointer(total), blocks);
        }
        return total.MoveToOuterDisposeScope();
    }

    /// <summary><see cref="GradientClipping.Factor"/> over the loss scale, where the optimizer's kernels read it.</summary>
    /// <param name="squares">Sum of the squares of the scaled gradient, fp64 scalar on the device.</param>
    /// <param name="lossScale">What the gradient was multiplied with.</param>
    /// <param name="maxNorm">0 turns clipping off.</param>
    /// <returns>fp32 scalar; NaN when the norm is not finite.</returns>
    public static Tensor ClipFactor(Tensor squares, double lossScale, double maxNorm)
    {
        var factor = empty([], float32, squares.device);
        CudaKernels.Of(File, KernelElement.Define(ScalarType.Float32)).Launch(
            "clip_factor", 1, 1, 1, 0,
            Dispatcher.DataPointer(squares), Dispatcher.DataPointer(factor), CudaKernels.Float(lossScale), CudaKernels.Float(maxNorm));
        return factor;
    }
}
