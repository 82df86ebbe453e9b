using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>The matrix product that libtorch does not offer: 16-bit inputs accumulated into an fp32 matrix by the GEMM itself.</summary>
public static unsafe class CudaBlas
{
    private const int OpN = 0, OpT = 1, ComputeFp32 = 68, DefaultAlgorithm = -1; // cublas_api.h
    private const int TypeFp32 = 0, TypeFp16 = 2, TypeBf16 = 14; // library_types.h

    /// <summary>target [O, I] += leftᵀ · right, on the current stream.</summary>
    /// <param name="target_OI">fp32, contiguous.</param>
    /// <param name="left_TO">[T, O], bf16 or fp16; rows may be strided.</param>
    /// <param name="right_TI">[T, I], same dtype.</param>
    /// <param name="overwrite">The target's values do not count and are not read: target = leftᵀ · right.</param>
    /// <exception cref="InvalidOperationException">cuBLAS refused the product.</exception>
    public static void AccumulateTransposed(Tensor target_OI, Tensor left_TO, Tensor right_TI, bool overwrite = false)
    {
        var type = left_TO.dtype switch
        {
            ScalarType.BFloat16 => TypeBf16,
            ScalarType.Float16 => TypeFp16,
            var other => throw new InvalidOperationException($"A product of {other} matrices is not accumulated by this function; use addmm."),
        };
        nint handle;
        StableAbi.Check(LibTorch.CudaAbi.CurrentBlasHandle(&handle), "torch_get_current_cuda_blas_handle");
        var (alpha, beta) = (1f, overwrite ? 0f : 1f);
        // cuBLAS is column-major: a row-major [O, I] is its [I, O], so it forms rightᵀ-shaped m = I by n = O with k = T.
        int m = (int)target_OI.shape[1], n = (int)target_OI.shape[0], k = (int)left_TO.shape[0];
        var status = LibTorch.CudaAbi.GemmEx(
            handle, OpN, OpT, m, n, k, &alpha, Dispatcher.DataPointer(right_TI), type, (int)right_TI.stride(0),
            Dispatcher.DataPointer(left_TO), type, (int)left_TO.stride(0), &beta, Dispatcher.DataPointer(target_OI), TypeFp32, m, ComputeFp32, DefaultAlgorithm);
        if (status != 0) throw new InvalidOperationException($"cublasGemmEx failed with status {status} for [{m}, {n}, {k}] {left_TO.dtype}.");
    }
}
