using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>The rotation of <see cref="RotaryEmbedding"/> on a GPU, in place.</summary>
internal static class RotaryKernel
{
    private const int BlockThreads = 256;

    /// <summary>True when the kernel rotates tensors like <paramref name="x_TND"/>.</summary>
    public static bool Supports(Tensor x_TND)
    {
        if (!KernelElement.Supports(x_TND)) return false;
        var vector = KernelElement.VectorLength(x_TND);
        return x_TND.shape[2] % (2 * vector) == 0 && x_TND.stride(2) == 1 && x_TND.stride(1) == x_TND.shape[2] && x_TND.stride(0) % vector == 0
            && KernelElement.IsAligned(x_TND);
    }

    /// <summary>Rotates by the angle of each token's position, or back.</summary>
    /// <param name="cos_PD">[positions, D].</param>
    /// <param name="sin_Ph">[positions, D / 2].</param>
    public static void Rotate(Tensor x_TND, Tensor cos_PD, Tensor sin_Ph, Tensor positions_T, bool inverse)
    {
        var (tokens, heads, half) = (x_TND.shape[0], x_TND.shape[1], x_TND.shape[2] / 2);
        var threads = tokens * heads * half / KernelElement.VectorLength(x_TND);
        CudaKernels.Of("rotary.cu", KernelElement.Define(x_TND)).Launch(
            "rotary_in_place", (uint)((threads + BlockThreads - 1) / BlockThreads), 1, BlockThreads, 0,
            Dispatcher.DataPointer(x_TND), Dispatcher.DataPointer(cos_PD), Dispatcher.DataPointer(sin_Ph), Dispatcher.DataPointer(positions_T),
            tokens, heads, x_TND.stride(0), half, CudaKernels.Float(inverse ? -1 : 1));
    }
}
