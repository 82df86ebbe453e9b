using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// The three products of a linear layer y = x Wᵀ + b: output, input gradient, weight gradient. In the model's dtype, or in training with factors rounded
/// to float8 (<see cref="ProductOptions.Float8"/>), where the extents allow it; master weights and what is kept of the input stay as they are.
/// </summary>
/// <remarks>
/// In float8 a matrix's largest magnitude is read once and kept for the second product that takes it, and the output gradient is kept as the
/// transposed float8 matrix that the weight product takes. Shape letters: T tokens, I input features, O output features.
/// </remarks>
/// <param name="weight_OI">The weight.</param>
/// <param name="bias_O">The bias, or null. Its gradient is the layer's.</param>
public sealed class LinearProducts(Parameter weight_OI, Parameter? bias_O, ProductOptions options)
{
    private const int InputMagnitude = 0, WeightMagnitude = 1, GradMatrix = 2, GradUnit = 3; // slots

    private Float8Kind GradKind => options.Float8 == Float8Format.Hybrid ? Float8Kind.E5M2 : Float8Kind.E4M3;

    /// <summary>x Wᵀ + b + addend, [T, O].</summary>
    /// <param name="addend_TO">[T, O], or null for nothing.</param>
    public Tensor Output(Tensor x_TI, Saved saved, Tensor? addend_TO = null)
    {
        if (!saved.Context.IsTraining || !IsFloat8(x_TI)) return LinearProduct.Output(x_TI, weight_OI.Data, bias_O?.Data, options, addend_TO);
        using var scope = NewDisposeScope();
        var (input, weight) = (Float8.LargestMagnitude(x_TI), Float8.LargestMagnitude(weight_OI.Data));
        saved.Keep(InputMagnitude, input);
        saved.Keep(WeightMagnitude, weight);
        var output_TO = Float8.Multiply(
            Float8.Round(x_TI, input, Float8Kind.E4M3), Float8.Round(weight_OI.Data, weight, Float8Kind.E4M3), bias_O?.Data, x_TI.dtype, fast: true, options);
        if (addend_TO is not null) output_TO.add_(addend_TO);
        return output_TO.MoveToOuterDisposeScope();
    }

    /// <summary>gradOutput · W, [T, I]. In float8 it also keeps what <see cref="AddKeptGradient"/> takes.</summary>
    public Tensor InputGradient(Tensor gradOutput_TO, Saved saved)
    {
        if (!KeepsGradient(gradOutput_TO)) return LinearProduct.InputGradient(gradOutput_TO, weight_OI.Data, options);
        using var scope = NewDisposeScope();
        var (grad_TO, grad_OT) = Float8.RoundBoth(gradOutput_TO, Float8.LargestMagnitude(gradOutput_TO), GradKind);
        saved.Keep(GradMatrix, grad_OT.Matrix);
        saved.Keep(GradUnit, grad_OT.Unit);
        var weight_IO = Float8.RoundTransposed(weight_OI.Data, saved.Take(WeightMagnitude), Float8Kind.E4M3);
        return Float8.Multiply(grad_TO, weight_IO, null, gradOutput_TO.dtype, fast: false, options).MoveToOuterDisposeScope();
    }

    /// <summary>True when <see cref="InputGradient"/> keeps this gradient itself, so that the layer need not.</summary>
    public bool KeepsGradient(Tensor gradOutput_TO) => IsFloat8(gradOutput_TO);

    /// <summary>Adds gradOutputᵀ · x to the main gradient.</summary>
    public void AddGradient(Tensor gradOutput_TO, Tensor x_TI) => WeightGradient.Accumulate(weight_OI, gradOutput_TO, x_TI, options);

    /// <summary>The same with the output gradient that <see cref="InputGradient"/> kept.</summary>
    public void AddKeptGradient(Tensor x_TI, Saved saved)
    {
        using var scope = NewDisposeScope();
        var grad_OT = new Float8Matrix(saved.Take(GradMatrix), saved.Take(GradUnit), GradKind);
        var x_IT = Float8.RoundTransposed(x_TI, saved.Take(InputMagnitude), Float8Kind.E4M3);
        var (mainGrad_OI, isEmpty) = weight_OI.Slot.TakeForWriting();
        Float8.Accumulate(mainGrad_OI, grad_OT, x_IT, isEmpty, options);
    }

    private bool IsFloat8(Tensor rows) => options.Float8 is not null && Float8.Takes(rows) && Float8.Takes(weight_OI.Data);
}
