using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>A product of bf16 matrices whose result stays fp32, which libtorch's <c>linear</c> does not give.</summary>
internal static unsafe class CudaWideGemm
{
    private const int OpN = 0, OpT = 1, ComputeFp32 = 68, DefaultAlgorithm = -1; // cublas_api.h
    private const int TypeFp32 = 0, TypeBf16 = 14;                              // library_types.h

    /// <summary>left · rightᵀ, on the current stream.</summary>
    /// <param name="left_TI">bf16, contiguous.</param>
    /// <param name="right_OI">bf16, contiguous.</param>
    /// <returns>[T, O] fp32.</returns>
    /// <exception cref="InvalidOperationException">cuBLAS refused the product.</exception>
    public static Tensor TimesTransposed(Tensor left_TI, Tensor right_OI)
    {
        var (rows, inner, columns) = ((int)left_TI.shape[0], (int)left_TI.shape[1], (int)right_OI.shape[0]);
        var result_TO = empty([rows, columns], ScalarType.Float32, left_TI.device);
        nint handle;
        StableAbi.Check(LibTorch.CudaAbi.CurrentBlasHandle(&handle), "torch_get_current_cuda_blas_handle");
        var (one, zero) = (1f, 0f);
        // cuBLAS is column-major: a row-major [T, O] is its [O, T] = right · leftᵀ, and a row-major [O, I] its [I, O].
        var status = LibTorch.CudaAbi.GemmEx(
            handle, OpT, OpN, columns, rows, inner, &one, Dispatcher.DataPointer(right_OI), TypeBf16, inner,
            Dispatcher.DataPointer(left_TI), TypeBf16, inner, &zero, Dispatcher.DataPointer(result_TO), TypeFp32, columns, ComputeFp32, DefaultAlgorithm);
        if (status != 0) throw new InvalidOperationException($"cublasGemmEx failed with status {status} for [{columns}, {rows}, {inner}] bf16 to fp32.");
        return result_TO;
    }
}
