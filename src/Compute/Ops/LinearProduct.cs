using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// The products of y = x Wᵀ + b in the model's dtype. Large ones of 16-bit matrices on a GPU go through <see cref="CudaBlas"/>, which measures;
/// all others, and all in deterministic mode, through libtorch.
/// </summary>
/// <remarks>Shape letters: T tokens, I input features, O output features.</remarks>
public static class LinearProduct
{
    /// <summary>x Wᵀ + b, [T, O].</summary>
    public static Tensor Output(Tensor x_TI, Tensor weight_OI, Tensor? bias_O, ProductOptions options)
    {
        if (options.IsDeterministic || !CudaBlas.IsWorthChoosing(x_TI, weight_OI, weight_OI.shape[0])) return nn.functional.linear(x_TI, weight_OI, bias_O);
        var output = empty([x_TI.shape[0], weight_OI.shape[0]], x_TI.dtype, x_TI.device);
        CudaBlas.MultiplyTransposed(output, x_TI, weight_OI, bias_O);
        return output;
    }

    /// <summary>gradOutput · W, [T, I].</summary>
    public static Tensor InputGradient(Tensor gradOutput_TO, Tensor weight_OI, ProductOptions options)
    {
        if (options.IsDeterministic || !CudaBlas.IsWorthChoosing(gradOutput_TO, weight_OI, weight_OI.shape[1])) return gradOutput_TO.mm(weight_OI);
        var gradInput = empty([gradOutput_TO.shape[0], weight_OI.shape[1]], gradOutput_TO.dtype, gradOutput_TO.device);
        CudaBlas.Multiply(gradInput, gradOutput_TO, weight_OI);
        return gradInput;
    }

    /// <summary>The same into <paramref name="gradInput_TI"/>, whose rows are contiguous.</summary>
    public static void InputGradientInto(Tensor gradInput_TI, Tensor gradOutput_TO, Tensor weight_OI, ProductOptions options)
    {
        if (!options.IsDeterministic && CudaBlas.IsWorthChoosing(gradOutput_TO, weight_OI, weight_OI.shape[1]))
        {
            CudaBlas.Multiply(gradInput_TI, gradOutput_TO, weight_OI);
            return;
        }
        using var scope = NewDisposeScope();
        gradInput_TI.copy_(gradOutput_TO.mm(weight_OI));
    }
}
