using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Kinds of float8 in a run's products (<c>--fp8_format</c>).</summary>
public enum Float8Format
{
    /// <summary>E4M3 everywhere.</summary>
    E4M3,

    /// <summary>E4M3 for weights and activations, E5M2, which has more range and fewer bits, for gradients.</summary>
    Hybrid,
}

/// <summary>The two float8 formats of arXiv 2209.05433, section 3.</summary>
public enum Float8Kind
{
    /// <summary>4 bits of exponent, 3 of mantissa, no infinity: up to 448.</summary>
    E4M3,

    /// <summary>5 and 2 bits: up to 57,344.</summary>
    E5M2,
}

/// <summary>A matrix rounded to float8: element = Matrix · Unit.</summary>
/// <param name="Matrix">On a GPU the bytes of float8; on a CPU the same values in fp32.</param>
/// <param name="Unit">[1] fp32: the largest magnitude over the largest number of the kind.</param>
/// <param name="Kind">The format.</param>
public readonly record struct Float8Matrix(Tensor Matrix, Tensor Unit, Float8Kind Kind);

/// <summary>
/// Rounds matrices to float8 with one scale for the whole matrix, taken from its own largest magnitude ("current", tensor-wise scaling), and
/// multiplies such matrices. On a GPU own kernels round, and the matrix units multiply; on a CPU the same rounding, done by libtorch's conversion,
/// and a product in fp32.
/// </summary>
/// <remarks>Elements that are not finite come out as NaN, so that a gradient that overflowed is still found by its norm. Shape letters: R rows, C columns, K depth.</remarks>
public static class Float8
{
    /// <summary>Extents divide by this: 16-byte rows for the matrix units, both ways round.</summary>
    public const int Multiple = 16;

    private const int TorchE5M2 = 23, TorchE4M3 = 24; // c10::ScalarType

    /// <summary>Below this magnitude a matrix is not scaled up: the factor would overflow.</summary>
    private const float LeastMagnitude = 1e-30f;

    /// <summary>True when a [tokens, columns] factor can be rounded: extents that divide by 16; on a GPU bf16.</summary>
    public static bool Takes(Tensor x_RC) =>
        x_RC.dim() == 2 && x_RC.shape[0] % Multiple == 0 && x_RC.shape[1] % Multiple == 0 && (x_RC.device_type == DeviceType.CPU || (x_RC.dtype == ScalarType.BFloat16 && KernelElement.IsAligned(x_RC)));

    /// <summary>Largest number of a kind.</summary>
    public static float Largest(Float8Kind kind) => kind == Float8Kind.E4M3 ? 448 : 57344;

    /// <summary>The largest magnitude of a matrix: [1] fp32.</summary>
    public static Tensor LargestMagnitude(Tensor x)
    {
        if (x.device_type == DeviceType.CUDA) return Float8Kernel.LargestMagnitude(x);
        using var scope = NewDisposeScope();
        return x.abs().max().to_type(ScalarType.Float32).reshape(1).MoveToOuterDisposeScope();
    }

    /// <summary>The matrix in float8.</summary>
    /// <param name="magnitude">Its <see cref="LargestMagnitude"/>.</param>
    public static Float8Matrix Round(Tensor x_RC, Tensor magnitude, Float8Kind kind)
    {
        if (x_RC.device_type == DeviceType.CUDA) return Float8Kernel.Round(x_RC, magnitude, kind, Float8Sides.Straight).Straight;
        using var scope = NewDisposeScope();
        var unit = magnitude.div(Largest(kind));
        var scale = where(magnitude.lt(LeastMagnitude), ones_like(magnitude), full_like(magnitude, Largest(kind)).div(magnitude));
        unit = where(magnitude.lt(LeastMagnitude), ones_like(magnitude), unit);
        var scaled = x_RC.to_type(ScalarType.Float32).mul(scale).clamp(-Largest(kind), Largest(kind));
        var narrow = Convert(scaled, kind == Float8Kind.E4M3 ? TorchE4M3 : TorchE5M2);
        return new Float8Matrix(Convert(narrow, (int)ScalarType.Float32).MoveToOuterDisposeScope(), unit.MoveToOuterDisposeScope(), kind);
    }

    /// <summary>Its transpose in float8, [C, R].</summary>
    public static Float8Matrix RoundTransposed(Tensor x_RC, Tensor magnitude, Float8Kind kind) => x_RC.device_type == DeviceType.CUDA
        ? Float8Kernel.Round(x_RC, magnitude, kind, Float8Sides.Transposed).Transposed
        : Transposed(Round(x_RC, magnitude, kind));

    /// <summary>Both, in one pass over the matrix.</summary>
    public static (Float8Matrix Straight, Float8Matrix Transposed) RoundBoth(Tensor x_RC, Tensor magnitude, Float8Kind kind)
    {
        if (x_RC.device_type == DeviceType.CUDA) return Float8Kernel.Round(x_RC, magnitude, kind, Float8Sides.Both);
        var straight = Round(x_RC, magnitude, kind);
        return (straight, Transposed(straight));
    }

    /// <summary>left [R, K] · right [C, K]ᵀ (+ bias) in <paramref name="dtype"/>: [R, C].</summary>
    /// <param name="fast">Partial sums may keep fewer bits on a GPU: good for activations, not for gradients.</param>
    public static Tensor Multiply(Float8Matrix left_RK, Float8Matrix right_CK, Tensor? bias_C, ScalarType dtype, bool fast, ProductOptions options)
    {
        if (left_RK.Matrix.device_type == DeviceType.CUDA)
        {
            var output_RC = empty([left_RK.Matrix.shape[0], right_CK.Matrix.shape[0]], dtype, left_RK.Matrix.device);
            Float8Kernel.Multiply(output_RC, left_RK, right_CK, new() { Bias = bias_C, IsFastAccumulation = fast, Measure = !options.IsDeterministic });
            return output_RC;
        }
        using var scope = NewDisposeScope();
        var product_RC = Reference(left_RK, right_CK);
        return (bias_C is null ? product_RC : product_RC.add(bias_C)).to_type(dtype).MoveToOuterDisposeScope();
    }

    /// <summary>target [R, C] += left [R, K] · right [C, K]ᵀ in fp32.</summary>
    /// <param name="overwrite">What the target holds does not count.</param>
    public static void Accumulate(Tensor target_RC, Float8Matrix left_RK, Float8Matrix right_CK, bool overwrite, ProductOptions options)
    {
        if (target_RC.device_type == DeviceType.CUDA)
        {
            Float8Kernel.Multiply(target_RC, left_RK, right_CK, new() { Accumulate = !overwrite, Measure = !options.IsDeterministic });
            return;
        }
        using var scope = NewDisposeScope();
        var product_RC = Reference(left_RK, right_CK);
        if (overwrite) target_RC.copy_(product_RC);
        else target_RC.add_(product_RC);
    }

    private static Tensor Reference(Float8Matrix left_RK, Float8Matrix right_CK) =>
        left_RK.Matrix.mm(right_CK.Matrix.t()).mul_(left_RK.Unit.mul(right_CK.Unit));

    private static Float8Matrix Transposed(Float8Matrix x) => x with { Matrix = x.Matrix.t() };

    private static Tensor Convert(Tensor x, int dtype) =>
        Dispatcher.Call("aten::to", "dtype", 1, x, (long)dtype, false, false, StableValue.Optional((long?)null))[0];
}
