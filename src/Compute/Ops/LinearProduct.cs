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
    /// <summary>x Wᵀ + b + addend, [T, O].</summary>
    /// <param name="addend_TO">[T, O], or null for nothing. cuBLASLt adds it before it rounds; elsewhere the product is rounded first.</param>
    public static Tensor Output(Tensor x_TI, Tensor weight_OI, Tensor? bias_O, ProductOptions options, Tensor? addend_TO = null)
    {
        if (options.IsDeterministic || !CudaBlas.IsWorthChoosing(x_TI, weight_OI, weight_OI.shape[0]))
        {
            var product_TO = nn.functional.linear(x_TI, weight_OI, bias_O);
            using var scope = NewDisposeScope(); // for the handle that add_ may return
            if (addend_TO is not null) product_TO.add_(addend_TO);
            return product_TO;
        }
        var output_TO = empty([x_TI.shape[0], weight_OI.shape[0]], x_TI.dtype, x_TI.device);
        using var contiguous_TO = addend_TO?.contiguous();
        CudaBlas.MultiplyTransposed(output_TO, x_TI, weight_OI, bias_O, contiguous_TO);
        return output_TO;
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
