using Megatron.Compute.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// fp32 products of a linear layer whose input and weight are bf16, on a GPU's tensor cores. Little is lost by that: the product of two bf16
/// numbers is exact in fp32, where sums are kept, and an fp32 gradient is taken as the sum of two bf16 numbers (16 bits of its mantissa). A GEMM
/// of fp32 copies takes ten times as long.
/// </summary>
/// <remarks>Shape letters: T tokens, I inputs, O outputs.</remarks>
public static class WideProduct
{
    /// <summary>True when the products of these matrices can be computed so.</summary>
    public static bool Supports(Tensor x_TI, Tensor weight_OI) =>
        x_TI.device_type == DeviceType.CUDA && x_TI.dtype == ScalarType.BFloat16 && weight_OI.dtype == ScalarType.BFloat16
        && x_TI.is_contiguous() && weight_OI.is_contiguous() && x_TI.shape[0] > 0;

    /// <summary>x · weightᵀ.</summary>
    /// <returns>[T, O] fp32.</returns>
    public static Tensor Forward(Tensor x_TI, Tensor weight_OI) => CudaWideGemm.TimesTransposed(x_TI, weight_OI);

    /// <summary>An fp32 matrix as the sum of two bf16 matrices, side by side.</summary>
    /// <returns>[T, 2·O]: the rounded values, and what rounding left, rounded.</returns>
    public static Tensor Split(Tensor gradient_TO)
    {
        using var scope = NewDisposeScope();
        var high_TO = gradient_TO.to_type(ScalarType.BFloat16);
        var low_TO = gradient_TO.sub(high_TO).to_type(ScalarType.BFloat16);
        return cat([high_TO, low_TO], 1).MoveToOuterDisposeScope();
    }

    /// <summary>Gradient of x.</summary>
    /// <param name="split_T2O"><see cref="Split"/> of the gradient of the product.</param>
    /// <returns>[T, I] bf16, rounded once.</returns>
    public static Tensor BackwardInput(Tensor split_T2O, Tensor weight_OI)
    {
        using var twice_2OI = cat([weight_OI, weight_OI], 0);
        return split_T2O.mm(twice_2OI);
    }

    /// <summary>Adds the weight's gradient.</summary>
    /// <param name="split_T2O">As in <see cref="BackwardInput"/>.</param>
    public static void BackwardWeight(Parameter weight_OI, Tensor split_T2O, Tensor x_TI)
    {
        using var scope = NewDisposeScope();
        var (mainGrad, isEmpty) = weight_OI.Slot.TakeForWriting();
        var outputs = split_T2O.shape[1] / 2;
        WeightGradient.Accumulate(mainGrad, split_T2O.narrow(1, 0, outputs), x_TI, ProductOptions.Unmeasured, overwrite: isEmpty);
        WeightGradient.Accumulate(mainGrad, split_T2O.narrow(1, outputs, outputs), x_TI, ProductOptions.Unmeasured);
    }
}
