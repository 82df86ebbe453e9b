using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary><see cref="TokenPermutation"/> on a GPU: a counting sort without atomics whose order shows, and one pass over the rows each way.</summary>
internal static class TokenPermutationKernel
{
    private const string File = "permutation.cu";
    private const int ChunkPlaces = 1024, MaxExperts = 512, MaxThreads = 256, WarpThreads = 32; // experts: 64 bytes of shared memory each

    /// <summary>True when the sort takes these indices.</summary>
    public static bool Supports(Tensor expertIndex_Tk, int numExperts) =>
        expertIndex_Tk.device_type == DeviceType.CUDA && expertIndex_Tk.dtype == ScalarType.Int64 && expertIndex_Tk.is_contiguous()
        && numExperts <= MaxExperts && expertIndex_Tk.numel() is > 0 and <= int.MaxValue;

    /// <summary>True when the kernels copy and sum rows like these.</summary>
    public static bool Supports(Tensor rows) =>
        KernelElement.Supports(rows) && rows.shape.Length == 2 && rows.shape[0] > 0 && rows.is_contiguous()
        && rows.shape[1] % KernelElement.VectorLength(rows) == 0 && KernelElement.IsAligned(rows);

    /// <summary>See <see cref="TokenPermutation.Plan"/>.</summary>
    public static (TokenOrder Order, Tensor RowsPerExpert_E) Plan(Tensor expertIndex_Tk, int numExperts)
    {
        var (places, device) = (expertIndex_Tk.numel(), expertIndex_Tk.device);
        var blocks = (places + ChunkPlaces - 1) / ChunkPlaces;
        var placeOfRow_R = empty([places], ScalarType.Int64, device);
        var rowOfPlace_Tk = empty(expertIndex_Tk.shape, ScalarType.Int64, device);
        var rowsPerExpert_E = empty([numExperts], ScalarType.Int64, device);
        using var firstRows_BE = empty([blocks, numExperts], ScalarType.Int32, device);
        var (experts, first) = (Dispatcher.DataPointer(expertIndex_Tk), Dispatcher.DataPointer(firstRows_BE));
        var (counters, warps) = ((uint)(numExperts * sizeof(int)), ChunkPlaces / WarpThreads);
        var kernels = CudaKernels.Of(File, "ELEMENT=2");
        kernels.Launch("count_experts", (uint)blocks, 1, ChunkPlaces, counters, experts, first, places, numExperts);
        kernels.Launch("first_rows", 1, 1, ChunkPlaces, counters, first, Dispatcher.DataPointer(rowsPerExpert_E), blocks, numExperts);
        kernels.Launch(
            "place_rows", (uint)blocks, 1, ChunkPlaces, (uint)(numExperts * warps * sizeof(ushort)), experts, first,
            Dispatcher.DataPointer(placeOfRow_R), Dispatcher.DataPointer(rowOfPlace_Tk), places, numExperts);
        return (new TokenOrder(placeOfRow_R, rowOfPlace_Tk), rowsPerExpert_E);
    }

    /// <summary>See <see cref="TokenPermutation.Copy"/>.</summary>
    public static Tensor Copy(Tensor x_TH, Tensor rowOfPlace_Tk)
    {
        var rows_RH = empty([rowOfPlace_Tk.numel(), x_TH.shape[1]], x_TH.dtype, x_TH.device);
        Launch("copy_rows", x_TH, rowOfPlace_Tk, rows_RH);
        return rows_RH;
    }

    /// <summary>See <see cref="TokenPermutation.Sum"/>.</summary>
    public static Tensor Sum(Tensor rows_RH, Tensor rowOfPlace_Tk)
    {
        var sums_TH = empty([rowOfPlace_Tk.shape[0], rows_RH.shape[1]], rows_RH.dtype, rows_RH.device);
        Launch("sum_rows", rows_RH, rowOfPlace_Tk, sums_TH);
        return sums_TH;
    }

    private static void Launch(string name, Tensor input, Tensor rowOfPlace_Tk, Tensor output)
    {
        var (numTokens, width) = (rowOfPlace_Tk.shape[0], input.shape[1]);
        var packs = width / KernelElement.VectorLength(input);
        var threads = (uint)Math.Min(MaxThreads, (packs + WarpThreads - 1) / WarpThreads * WarpThreads);
        CudaKernels.Of(File, KernelElement.Define(input)).Launch(
            name, (uint)numTokens, 1, threads, 0, Dispatcher.DataPointer(input), Dispatcher.DataPointer(rowOfPlace_Tk), Dispatcher.DataPointer(output),
            rowOfPlace_Tk.shape[1], width);
    }
}
