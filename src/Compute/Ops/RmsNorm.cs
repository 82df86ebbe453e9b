using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Root-mean-square normalisation over the last dimension (arXiv 1910.07467, eq. 4), in plain libtorch operations, and on a GPU in one kernel
/// each way (<c>Kernels/rms_norm.cu</c>). Statistics are fp32
/// (fp64 for an fp64 model); the product with the weight happens in the activation dtype, which is Hugging Face's order of rounding.
/// </summary>
public static class RmsNorm
{
    /// <summary>y = weight · (x / sqrt(mean(x²) + epsilon)), the bracket rounded to the dtype of x first.</summary>
    /// <param name="x">[…, H].</param>
    /// <param name="weight">[H], or [heads, H] when every head has its own weight.</param>
    /// <returns>y like x, and the reciprocal root […, 1] in the statistics' dtype, which the backward needs.</returns>
    public static (Tensor Output, Tensor InverseRms) Forward(Tensor x, Tensor weight, double epsilon)
    {
        if (RmsNormKernel.Supports(x, weight))
        {
            var (_, output, inverse) = RmsNormKernel.Forward(x, residual: null, weight, epsilon);
            return (output, inverse);
        }
        using var wide = Widen(x);
        using var squares = wide.mul(wide);
        var inverseRms = squares.mean([-1], keepdim: true).add_(epsilon).rsqrt_();
        return (Apply(x, weight, inverseRms), inverseRms);
    }

    /// <summary>The norm of x + residual, and that sum: one pass over memory on a GPU.</summary>
    /// <param name="x">[T, H].</param>
    /// <param name="residual">[T, H].</param>
    public static (Tensor Sum, Tensor Output, Tensor InverseRms) ForwardAdd(Tensor x, Tensor residual, Tensor weight, double epsilon)
    {
        if (RmsNormKernel.Supports(x, weight) && RmsNormKernel.Supports(residual, weight)
            && RmsNormKernel.Forward(x, residual, weight, epsilon) is ({ } fused, var fusedOutput, var fusedInverse)) return (fused, fusedOutput, fusedInverse);
        var sum = x.add(residual);
        var (output, inverseRms) = Forward(sum, weight, epsilon);
        return (sum, output, inverseRms);
    }

    /// <summary>The output again from the input and its saved statistics: the same bits as <see cref="Forward"/>.</summary>
    public static Tensor Apply(Tensor x, Tensor weight, Tensor inverseRms)
    {
        if (x.dtype == inverseRms.dtype) return x.mul(inverseRms).mul_(weight);
        using var wide = Widen(x);
        return wide.mul_(inverseRms).to_type(x.dtype).mul_(weight);
    }

    /// <summary>True where <see cref="Backward"/> gives the output again for the price of writing it: it need not be kept meanwhile.</summary>
    public static bool GivesOutputAgain(Tensor x, Tensor weight) => RmsNormKernel.Supports(x, weight);

    /// <summary>Both gradients; that of the weight is small, so there is no reason to defer it.</summary>
    /// <param name="gradOutput">[…, H] like y.</param>
    /// <param name="residualGradient">Added to the gradient of x: what reaches x past the norm; null for nothing.</param>
    /// <param name="wantsOutput">Compute y again, the same bits.</param>
    /// <returns>
    /// Gradient of x in its dtype; parts [P, …] in the statistics' dtype whose sum over P is the gradient of the weight; y or null.
    /// </returns>
    public static (Tensor GradInput, Tensor GradWeightParts, Tensor? Output) Backward(
        Tensor gradOutput, Tensor x, Tensor weight, Tensor inverseRms, Tensor? residualGradient = null, bool wantsOutput = false)
    {
        if (RmsNormKernel.Supports(x, weight) && RmsNormKernel.Supports(gradOutput, weight)
            && (residualGradient is null || RmsNormKernel.Supports(residualGradient, weight)))
            return RmsNormKernel.Backward(gradOutput, x, weight, inverseRms, residualGradient, wantsOutput);
        using var wide = Widen(x);
        using var normalized = wide.mul(inverseRms);
        using var gradNormalized = Widen(gradOutput).mul(weight);
        var gradWeight = WeightGradientOf(gradOutput, normalized, weight).unsqueeze_(0);
        using var product = gradNormalized.mul(normalized);
        using var projection = product.mean([-1], keepdim: true);
        var gradInput = gradNormalized.addcmul(normalized, projection, value: -1).mul_(inverseRms);
        var rounded = gradInput.to_type(x.dtype);
        return (residualGradient is null ? rounded : rounded.add_(residualGradient), gradWeight, wantsOutput ? Apply(x, weight, inverseRms) : null);
    }

    private static Tensor WeightGradientOf(Tensor gradOutput, Tensor normalized, Tensor weight)
    {
        using var product = gradOutput.dtype == normalized.dtype
            ? gradOutput.mul(normalized)
            : Widen(gradOutput).mul_(normalized.to_type(gradOutput.dtype));
        using var rows = product.reshape([-1, .. weight.shape]);
        return rows.sum(dim: 0);
    }

    /// <summary>An fp32 copy of a 16-bit tensor; a fresh alias of a wider one.</summary>
    private static Tensor Widen(Tensor x) => x.element_size() >= 4 ? x.alias() : x.to_type(ScalarType.Float32);
}
