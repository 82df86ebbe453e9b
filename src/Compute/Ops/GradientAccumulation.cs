using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Adds finished gradients to fp32 main gradients: libtorch operations, and on a GPU one kernel (<c>Kernels/accumulate.cu</c>). No atomics: every
/// sum has one order.
/// </summary>
/// <remarks>Shape letters: T tokens, V rows of a table, H hidden.</remarks>
public static class GradientAccumulation
{
    private const string File = "accumulate.cu";
    private const int BlockThreads = 256, EmbeddingThreads = 128, SumColumns = 32, SumThreads = 1024;

    /// <summary>target += gradient, or target = gradient.</summary>
    /// <param name="target">fp32 (or the dtype of the gradient), contiguous.</param>
    /// <param name="gradient">Same shape.</param>
    /// <param name="overwrite">What the target holds does not count.</param>
    public static void Add(Tensor target, Tensor gradient, bool overwrite)
    {
        using var scope = NewDisposeScope(); // for the handles that in-place operations return
        if (!IsFused(target, gradient))
        {
            if (overwrite) target.copy_(gradient);
            else target.add_(gradient);
            return;
        }
        long perBlock = BlockThreads * KernelElement.VectorLength(gradient);
        CudaKernels.Of(File, KernelElement.Define(gradient)).Launch(
            "accumulate", (uint)((gradient.numel() + perBlock - 1) / perBlock), 1, BlockThreads, 0,
            Dispatcher.DataPointer(gradient), Dispatcher.DataPointer(target), gradient.numel(), overwrite ? 1 : 0);
    }

    /// <summary>target += the sum of the rows of <paramref name="parts_PO"/>, or target = that sum.</summary>
    /// <param name="target_O">fp32 (or the dtype of the parts), contiguous.</param>
    /// <param name="parts_PO">[P, O]; elements of a row lie together, rows may be strided.</param>
    public static void AddSum(Tensor target_O, Tensor parts_PO, bool overwrite)
    {
        if (parts_PO.device_type != DeviceType.CUDA || parts_PO.dtype != ScalarType.Float32 || target_O.dtype != ScalarType.Float32 || parts_PO.dim() != 2)
        {
            using var sum_O = parts_PO.sum(dim: 0);
            Add(target_O, sum_O, overwrite);
            return;
        }
        CudaKernels.Of(File, KernelElement.Define(ScalarType.Float32)).Launch(
            "add_sum_of_rows", (uint)((parts_PO.shape[1] + SumColumns - 1) / SumColumns), 1, SumThreads, 0,
            Dispatcher.DataPointer(parts_PO), Dispatcher.DataPointer(target_O), parts_PO.shape[0], parts_PO.shape[1], parts_PO.stride(0), overwrite ? 1 : 0);
    }

    /// <summary>table[id of a token] += the token's gradient, for all tokens, in fp32 and in token order.</summary>
    /// <param name="table_VH">fp32 (or wider), contiguous.</param>
    /// <param name="gradient_TH">In the model dtype.</param>
    /// <param name="ids_T">int64, below V.</param>
    public static void AddEmbeddingRows(Tensor table_VH, Tensor gradient_TH, Tensor ids_T)
    {
        using var scope = NewDisposeScope();
        if (!IsFused(table_VH, gradient_TH) || gradient_TH.shape[1] % KernelElement.VectorLength(gradient_TH) != 0)
        {
            var wide_TH = gradient_TH.to_type(table_VH.dtype);
            // On a GPU index_add_ adds with atomics, in any order; index_put_ sorts the tokens first, so each row has one order of additions.
            if (gradient_TH.device_type == DeviceType.CUDA) table_VH.index_put_(wide_TH, [ids_T], true);
            else table_VH.index_add_(0, ids_T, wide_TH, 1);
            return;
        }
        var (sorted_T, tokenOf_T) = ids_T.sort(dim: 0, descending: false, stable: true);
        var (tokens, width) = (gradient_TH.shape[0], gradient_TH.shape[1]);
        long columns = EmbeddingThreads * KernelElement.VectorLength(gradient_TH);
        CudaKernels.Of(File, KernelElement.Define(gradient_TH)).Launch(
            "add_embedding_rows", (uint)tokens, (uint)((width + columns - 1) / columns), EmbeddingThreads, 0,
            Dispatcher.DataPointer(gradient_TH), Dispatcher.DataPointer(sorted_T), Dispatcher.DataPointer(tokenOf_T), Dispatcher.DataPointer(table_VH), tokens, width);
    }

    private static bool IsFused(Tensor target, Tensor gradient) =>
        KernelElement.Supports(gradient) && target.dtype == ScalarType.Float32 && target.is_contiguous() && gradient.is_contiguous() && gradient.numel() > 0
        && KernelElement.IsAligned(target) && KernelElement.IsAligned(gradient);
}
