using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary><see cref="RmsNorm"/> on a GPU: rows [T, H] with a weight [H].</summary>
internal static class RmsNormKernel
{
    private const string File = "rms_norm.cu";
    private const int MaxThreads = 1024, Multiprocessors = 132; // of a Hopper GPU; others are as correct

    /// <summary>True when the kernels compute tensors like these.</summary>
    public static bool Supports(Tensor x, Tensor weight)
    {
        if (!KernelElement.Supports(x) || x.shape.Length != 2 || !x.is_contiguous() || weight.dtype != x.dtype || weight.shape.Length != 1) return false;
        var (width, vector) = (x.shape[1], KernelElement.VectorLength(x));
        return width % vector == 0 && width <= MaxThreads * vector && KernelElement.IsAligned(x) && KernelElement.IsAligned(weight);
    }

    /// <summary>See <see cref="RmsNorm.Forward"/> and <see cref="RmsNorm.ForwardAdd"/>: without a residual the sum is null.</summary>
    public static (Tensor? Sum, Tensor Output, Tensor InverseRms) Forward(Tensor x, Tensor? residual, Tensor weight, double epsilon)
    {
        var output = empty(x.shape, x.dtype, x.device);
        var sum = residual is null ? null : empty(x.shape, x.dtype, x.device);
        var inverseRms = empty([x.shape[0], 1], ScalarType.Float32, x.device);
        CudaKernels.Of(File, KernelElement.Define(x)).Launch(
            "rms_norm_forward", (uint)x.shape[0], 1, Threads(x), 0,
            Pointer(x), Pointer(residual), Pointer(weight), Pointer(sum), Pointer(output), Pointer(inverseRms), x.shape[1], CudaKernels.Float(epsilon));
        return (sum, output, inverseRms);
    }

    /// <summary>See <see cref="RmsNorm.Backward"/>.</summary>
    public static (Tensor GradInput, Tensor GradWeightParts, Tensor? Output) Backward(
        Tensor gradOutput, Tensor x, Tensor weight, Tensor inverseRms, Tensor? residualGradient, bool wantsOutput)
    {
        var gradInput = empty(x.shape, x.dtype, x.device);
        var output = wantsOutput ? empty(x.shape, x.dtype, x.device) : null;
        var threads = Threads(x);
        var blocks = Math.Min(x.shape[0], Multiprocessors * Math.Max(1, MaxThreads / threads));
        var partial = empty([blocks, x.shape[1]], ScalarType.Float32, x.device);
        CudaKernels.Of(File, KernelElement.Define(x)).Launch(
            "rms_norm_backward", (uint)blocks, 1, threads, 0,
            Pointer(gradOutput), Pointer(residualGradient), Pointer(x), Pointer(weight), Pointer(inverseRms), Pointer(gradInput), Pointer(output), Pointer(partial),
            x.shape[0], x.shape[1]);
        return (gradInput, partial, output);
    }

    /// <summary>Whole warps, one pack a thread.</summary>
    private static uint Threads(Tensor x) => (uint)((x.shape[1] / KernelElement.VectorLength(x) + 31) / 32 * 32);

    private static long Pointer(Tensor? tensor) => tensor is null ? 0 : Dispatcher.DataPointer(tensor);
}
