using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// <see cref="RmsNorm"/> on a GPU. Takes [T, H] with a weight [H], and heads [T, A, D] as they stand inside a fused projection with a weight
/// [D] or [A, D].
/// </summary>
internal static class RmsNormKernel
{
    private const string File = "rms_norm.cu";
    private const int LanesPerHead = 16, BlockThreads = 256, BackwardBlocks = 264; // two blocks for each of 132 multiprocessors

    /// <summary>True when the kernels compute tensors like these.</summary>
    public static bool Supports(Tensor x, Tensor weight)
    {
        if (!KernelElement.Supports(x) || weight.dtype != x.dtype || !weight.is_contiguous()) return false;
        var (width, vector) = (x.shape[^1], KernelElement.VectorLength(x));
        if (width % vector != 0 || width > 4 * BlockThreads * vector || x.stride(-1) != 1) return false;
        var isRows = x.shape.Length == 2 && x.is_contiguous() && weight.shape.Length == 1;
        var isHeads = x.shape.Length == 3 && x.stride(1) == width && x.stride(0) % vector == 0 && width <= LanesPerHead * vector;
        return (isRows || isHeads) && KernelElement.IsAligned(x);
    }

    /// <summary>See <see cref="RmsNorm.Forward"/>.</summary>
    public static (Tensor Output, Tensor InverseRms) Forward(Tensor x, Tensor weight, double epsilon)
    {
        var layout = new Layout(x, weight);
        var output = empty(x.shape, x.dtype, x.device);
        var inverseRms = empty([.. x.shape[..^1], 1], ScalarType.Float32, x.device);
        var kernels = CudaKernels.Of(File, KernelElement.Define(x));
        if (layout.IsSmall)
        {
            const int rowsPerBlock = BlockThreads / LanesPerHead;
            kernels.Launch("rms_norm_forward_heads", Blocks(layout.Rows, rowsPerBlock), 1, BlockThreads, 0,
                Pointer(x), Pointer(weight), Pointer(output), Pointer(inverseRms), layout.Rows, layout.Heads, layout.Stride, layout.Width, layout.WeightStride,
                CudaKernels.Float(epsilon));
        }
        else
        {
            kernels.Launch("rms_norm_forward", (uint)layout.Rows, 1, BlockThreads, 0,
                Pointer(x), Pointer(weight), Pointer(output), Pointer(inverseRms), layout.Heads, layout.Stride, layout.Width, layout.WeightStride,
                CudaKernels.Float(epsilon));
        }
        return (output, inverseRms);
    }

    /// <summary>See <see cref="RmsNorm.Backward"/>; the gradient of x is contiguous.</summary>
    public static (Tensor GradInput, Tensor GradWeight) Backward(Tensor gradOutput, Tensor x, Tensor weight, Tensor inverseRms)
    {
        var layout = new Layout(x, weight);
        var gradInput = empty(x.shape, x.dtype, x.device);
        var kernels = CudaKernels.Of(File, KernelElement.Define(x));
        var blocks = layout.IsSmall ? (uint)Math.Max(1, 8 * BackwardBlocks / layout.Heads) : (uint)BackwardBlocks;
        using var partial = empty([blocks, layout.Heads, layout.Width], ScalarType.Float32, x.device);
        if (layout.IsSmall)
        {
            var sharedBytes = (uint)(BlockThreads / LanesPerHead * layout.Width * sizeof(float));
            kernels.Launch("rms_norm_backward_heads", blocks, (uint)layout.Heads, BlockThreads, sharedBytes,
                Pointer(gradOutput), Pointer(x), Pointer(weight), Pointer(inverseRms), Pointer(gradInput), Pointer(partial), layout.Rows / layout.Heads, layout.Heads,
                gradOutput.stride(0), layout.Stride, layout.Width, layout.WeightStride);
        }
        else
        {
            kernels.Launch("rms_norm_backward", blocks, 1, BlockThreads, 0,
                Pointer(gradOutput), Pointer(x), Pointer(weight), Pointer(inverseRms), Pointer(gradInput), Pointer(partial), layout.Rows, layout.Width);
        }
        using var summed = partial.sum(dim: 0);
        return (gradInput, weight.shape.Length == 1 && layout.Heads > 1 ? summed.sum(dim: 0) : summed.reshape(weight.shape));
    }

    private static uint Blocks(long rows, int rowsPerBlock) => (uint)((rows + rowsPerBlock - 1) / rowsPerBlock);

    private static long Pointer(Tensor tensor) => Dispatcher.DataPointer(tensor);

    private readonly record struct Layout(long Rows, long Heads, long Stride, long Width, long WeightStride, bool IsSmall)
    {
        public Layout(Tensor x, Tensor weight) : this(
            x.numel() / x.shape[^1], x.shape.Length == 3 ? x.shape[1] : 1, x.stride(0), x.shape[^1], weight.shape.Length == 2 ? weight.shape[1] : 0,
            x.shape[^1] <= LanesPerHead * KernelElement.VectorLength(x))
        {
        }
    }
}
