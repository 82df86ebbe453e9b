using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Which of a matrix and its transpose are wanted in float8.</summary>
[Flags]
internal enum Float8Sides
{
    Straight = 1,
    Transposed = 2,
    Both = Straight | Transposed,
}

/// <summary><see cref="Float8"/> on a GPU of compute capability 8.9 or later.</summary>
internal static class Float8Kernel
{
    private const int BlockThreads = 256, Tile = 128, BlocksPerProcessor = 8, NumProcessors = 132;

    /// <summary>See <see cref="Float8.LargestMagnitude"/>.</summary>
    public static Tensor LargestMagnitude(Tensor x)
    {
        var magnitude = zeros(1, ScalarType.Float32, x.device);
        using var dense = x.contiguous();
        long perBlock = BlockThreads * KernelElement.VectorLength(dense);
        var blocks = (uint)Math.Min((dense.numel() + perBlock - 1) / perBlock, BlocksPerProcessor * NumProcessors);
        Kernels(dense).Launch("largest_magnitude", blocks, 1, BlockThreads, 0, Dispatcher.DataPointer(dense), dense.numel(), Dispatcher.DataPointer(magnitude));
        return magnitude;
    }

    /// <summary>One pass over the matrix; a side that is not wanted has no tensors.</summary>
    public static (Float8Matrix Straight, Float8Matrix Transposed) Round(Tensor x_RC, Tensor magnitude, Float8Kind kind, Float8Sides sides)
    {
        var (rows, columns) = (x_RC.shape[0], x_RC.shape[1]);
        var straight = sides.HasFlag(Float8Sides.Straight) ? Empty(rows, columns, x_RC.device, kind) : default;
        var transposed = sides.HasFlag(Float8Sides.Transposed) ? Empty(columns, rows, x_RC.device, kind) : default;
        using var dense = x_RC.contiguous();
        Kernels(dense).Launch(
            kind == Float8Kind.E4M3 ? "round_to_e4m3" : "round_to_e5m2", (uint)((columns + Tile - 1) / Tile), (uint)((rows + Tile - 1) / Tile), BlockThreads, 0,
            Dispatcher.DataPointer(dense), Dispatcher.DataPointer(magnitude), rows, columns,
            Address(straight.Matrix), Address(straight.Unit), Address(transposed.Matrix), Address(transposed.Unit));
        return (straight, transposed);
    }

    /// <summary>target [R, C] (+)= left [R, K] · right [C, K]ᵀ: the one layout in which Hopper's matrix units take float8.</summary>
    public static void Multiply(Tensor target_RC, Float8Matrix left_RK, Float8Matrix right_CK, ProductSettings settings) =>
        CudaBlas.Run(target_RC, Operand(left_RK, isTransposed: false), Operand(right_CK, isTransposed: true), settings);

    private static ProductOperand Operand(Float8Matrix x, bool isTransposed) => new(x.Matrix, isTransposed)
    {
        Float8Type = x.Kind == Float8Kind.E4M3 ? CublasLt.TypeE4M3 : CublasLt.TypeE5M2,
        Unit = x.Unit,
    };

    private static Float8Matrix Empty(long rows, long columns, Device device, Float8Kind kind) =>
        new(empty([rows, columns], ScalarType.Byte, device), empty(1, ScalarType.Float32, device), kind);

    private static long Address(Tensor? tensor) => tensor is null ? 0 : Dispatcher.DataPointer(tensor);

    private static CudaKernels Kernels(Tensor x) => CudaKernels.Of(CudaKernels.Float8File, KernelElement.Define(x));
}
