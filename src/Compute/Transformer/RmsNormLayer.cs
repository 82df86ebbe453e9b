using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>RMSNorm with its weight. Keeps its input and one number per token; the output can be computed again from them.</summary>
public sealed class RmsNormLayer(Parameter weight_H, double epsilon) : ILayer
{
    private const int Input = 0, InverseRms = 1, GradWeightParts = 2;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; } = [weight_H];

    /// <param name="x">[T, H]; kept.</param>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (output, inverseRms) = RmsNorm.Forward(x, weight_H.Data, epsilon);
        saved.Keep(Input, x);
        saved.Keep(InverseRms, inverseRms);
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>The norm of x + residual, and that sum, which is what is kept.</summary>
    /// <param name="x">[T, H].</param>
    /// <param name="residual">[T, H].</param>
    public (Tensor Sum, Tensor Output) ForwardAdd(Tensor x, Tensor residual, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (sum, output, inverseRms) = RmsNorm.ForwardAdd(x, residual, weight_H.Data, epsilon);
        saved.Keep(Input, sum);
        saved.Keep(InverseRms, inverseRms);
        return (sum.MoveToOuterDisposeScope(), output.MoveToOuterDisposeScope());
    }

    /// <summary>The output of Forward again, the same bits, from what it kept.</summary>
    public Tensor Recompute(Saved saved)
    {
        using var scope = NewDisposeScope();
        return RmsNorm.Apply(saved.Peek(Input), weight_H.Data, saved.Peek(InverseRms)).MoveToOuterDisposeScope();
    }

    /// <summary>After Forward: see <see cref="RmsNorm.GivesOutputAgain"/>.</summary>
    public bool GivesOutputAgain(Saved saved) => RmsNorm.GivesOutputAgain(saved.Peek(Input), weight_H.Data);

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved) => BackwardInput(gradOutput, residualGradient: null, wantsOutput: false, saved).GradInput;

    /// <summary>The gradient of the input with <paramref name="residualGradient"/> added, which reaches the input past the norm.</summary>
    /// <param name="wantsOutput">The output of Forward again, the same bits.</param>
    public (Tensor GradInput, Tensor? Output) BackwardInput(Tensor gradOutput, Tensor? residualGradient, bool wantsOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (gradInput, gradWeightParts, output) =
            RmsNorm.Backward(gradOutput, saved.Take(Input), weight_H.Data, saved.Take(InverseRms), residualGradient, wantsOutput);
        saved.Keep(GradWeightParts, gradWeightParts);
        return (gradInput.MoveToOuterDisposeScope(), output?.MoveToOuterDisposeScope());
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        using var gradWeightParts = saved.Take(GradWeightParts);
        WeightGradient.AddSum(weight_H, gradWeightParts);
    }
}
