using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>One factor of a product on a GPU.</summary>
/// <param name="Matrix">2-D; elements of a row lie together, rows may be strided.</param>
/// <param name="IsTransposed">The product takes its transpose.</param>
internal readonly record struct ProductOperand(Tensor Matrix, bool IsTransposed = false)
{
    /// <summary>cudaDataType, when the matrix holds bytes of float8; else that of its dtype.</summary>
    public int? Float8Type { get; init; }

    /// <summary>[1] fp32: value of a unit of a float8 matrix.</summary>
    public Tensor? Unit { get; init; }

    public int Type => Float8Type ?? Matrix.dtype switch
    {
        ScalarType.BFloat16 => CublasLt.TypeBf16,
        ScalarType.Float16 => CublasLt.TypeFp16,
        var other => throw new InvalidOperationException($"A product of {other} matrices is not formed by this function; use libtorch's."),
    };

    /// <summary>Elements between the end of a row and the next.</summary>
    public long Gap => Matrix.shape[0] > 1 ? Matrix.stride(0) - Matrix.shape[1] : 0;
}

/// <summary>Matrix products on a GPU: 16-bit inputs with a 16-bit result, or accumulated into an fp32 matrix by the GEMM itself.</summary>
public static class CudaBlas
{
    /// <summary>True for a product of these matrices that is large enough to choose its algorithm by measuring.</summary>
    /// <param name="left_TK">[T, K].</param>
    /// <param name="columns">Of the result.</param>
    public static bool IsWorthChoosing(Tensor left_TK, Tensor right, long columns) =>
        left_TK.device_type == DeviceType.CUDA && left_TK.dtype is ScalarType.BFloat16 or ScalarType.Float16 && right.dtype == left_TK.dtype
        && left_TK.dim() == 2 && left_TK.stride(1) == 1 && right.stride(1) == 1 && GpuProducts.IsLarge(2.0 * left_TK.shape[0] * left_TK.shape[1] * columns);

    /// <summary>target [T, O] = left [T, I] · right [O, I]ᵀ (+ bias [O]) (+ addend [T, O]), on the current stream; the algorithm is chosen by measuring.</summary>
    /// <param name="addend_TO">Contiguous, in the dtype of the target, which it is not.</param>
    public static void MultiplyTransposed(Tensor target_TO, Tensor left_TI, Tensor right_OI, Tensor? bias_O, Tensor? addend_TO = null) =>
        Run(target_TO, new(left_TI), new(right_OI, IsTransposed: true), new() { Bias = bias_O, Addend = addend_TO, Measure = true });

    /// <summary>target [T, I] = left [T, O] · right [O, I], likewise.</summary>
    public static void Multiply(Tensor target_TI, Tensor left_TO, Tensor right_OI) => Run(target_TI, new(left_TO), new(right_OI), new() { Measure = true });

    /// <summary>target [O, I] += leftᵀ · right, on the current stream.</summary>
    /// <param name="target_OI">fp32, contiguous.</param>
    /// <param name="left_TO">[T, O], bf16 or fp16; rows may be strided.</param>
    /// <param name="right_TI">[T, I], same dtype.</param>
    /// <param name="overwrite">The target's values do not count and are not read: target = leftᵀ · right.</param>
    /// <param name="measure">The algorithm of a large product is chosen by measuring; else it is the library's first proposal.</param>
    /// <exception cref="InvalidOperationException">cuBLASLt refused the product.</exception>
    public static void AccumulateTransposed(Tensor target_OI, Tensor left_TO, Tensor right_TI, bool overwrite = false, bool measure = false) =>
        Run(target_OI, new(left_TO, IsTransposed: true), new(right_TI), new() { Accumulate = !overwrite, Measure = measure });

    /// <summary>target [R, C] (+)= op(left) · op(right): row-major, so cuBLAS, which is column-major, forms op(right)ᵀ · op(left)ᵀ.</summary>
    internal static void Run(Tensor target_RC, ProductOperand left, ProductOperand right, ProductSettings settings)
    {
        var depth = left.Matrix.shape[left.IsTransposed ? 0 : 1];
        if (!target_RC.is_contiguous() || depth != right.Matrix.shape[right.IsTransposed ? 1 : 0])
            throw new InvalidOperationException($"A product of {Shape(left)} and {Shape(right)} into [{string.Join(", ", target_RC.shape)}] does not fit, or its target is not contiguous.");
        var at = new ProductAddresses(
            Dispatcher.DataPointer(right.Matrix), Dispatcher.DataPointer(left.Matrix), Dispatcher.DataPointer(target_RC),
            AddressOf(settings.Bias), AddressOf(right.Unit), AddressOf(left.Unit), AddressOf(settings.Addend));
        var shape = new ProductShape
        {
            M = checked((int)target_RC.shape[1]), N = checked((int)target_RC.shape[0]), K = checked((int)depth),
            TransposeA = right.IsTransposed, TransposeB = left.IsTransposed, GapA = right.Gap, GapB = left.Gap,
            TypeA = right.Type, TypeB = left.Type, TypeD = target_RC.dtype == ScalarType.Float32 ? CublasLt.TypeFp32 : new ProductOperand(target_RC).Type,
            HasBias = settings.Bias is not null, IsFastAccumulation = settings.IsFastAccumulation, Alignment = ProductShape.AlignmentOf(at.A, at.B, at.D, at.Addend),
        };
        GpuProducts.Of(target_RC.device_index).Run(shape, at, settings.Accumulate, settings.Measure);
    }

    private static nint AddressOf(Tensor? tensor) => tensor is null ? 0 : Dispatcher.DataPointer(tensor);

    private static string Shape(ProductOperand operand) => $"[{string.Join(", ", operand.Matrix.shape)}]{(operand.IsTransposed ? "ᵀ" : "")}";
}

/// <summary>How a product on a GPU is formed.</summary>
internal readonly record struct ProductSettings
{
    /// <summary>[C], added to every row of the result.</summary>
    public Tensor? Bias { get; init; }

    /// <summary>Like the target, added to the product before it is rounded.</summary>
    public Tensor? Addend { get; init; }

    /// <summary>Adds to what the target holds.</summary>
    public bool Accumulate { get; init; }

    /// <summary>See <see cref="GpuProducts.Run"/>.</summary>
    public bool Measure { get; init; }

    /// <summary>See <see cref="ProductShape.IsFastAccumulation"/>.</summary>
    public bool IsFastAccumulation { get; init; }
}
