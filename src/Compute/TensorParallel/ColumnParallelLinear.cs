using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// y = x Wᵀ + b with W split by output rows over the tensor-parallel group (arXiv 1909.08053, section 3): the input is whole, the output
/// holds this rank's features. Forward gathers the tokens under sequence parallelism; the input gradient is summed over the group.
/// </summary>
/// <remarks>Shape letters: T tokens, t tokens outside the region, I input features, o = O / tp output features of this rank.</remarks>
public sealed class ColumnParallelLinear : IInputRestorable
{
    private const int Input = 0, GradOutput = 1;

    private readonly Parameter weight_oI;
    private readonly Parameter? bias_o;
    private readonly SequenceParallelRegion region;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="weight_oI">This rank's rows.</param>
    /// <param name="bias_o">This rank's part of the bias, or null.</param>
    public ColumnParallelLinear(Parameter weight_oI, Parameter? bias_o, SequenceParallelRegion region)
    {
        (this.weight_oI, this.bias_o, this.region) = (weight_oI, bias_o, region);
        Parameters = bias_o is null ? [weight_oI] : [weight_oI, bias_o];
    }

    /// <param name="x_tI">[t, I]; kept.</param>
    /// <returns>[T, o], fresh.</returns>
    public Tensor Forward(Tensor x_tI, Saved saved)
    {
        saved.Keep(Input, x_tI);
        return region.GatherThen(x_tI, x_TI => nn.functional.linear(x_TI, weight_oI.Data, bias_o?.Data));
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput_To, Saved saved)
    {
        saved.Keep(GradOutput, gradOutput_To);
        return region.ThenReduce(gradOutput_To, grad_To => grad_To.mm(weight_oI.Data));
    }

    /// <summary>Gathers the kept input again under sequence parallelism, so that only 1/tp of it is stored meanwhile.</summary>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput_To = saved.Take(GradOutput);
        region.ForEachGathered(saved.Take(Input), gradOutput_To, (grad_To, x_TI) => WeightGradient.Accumulate(weight_oI, grad_To, x_TI));
        if (bias_o is not null) WeightGradient.AccumulateBias(bias_o, gradOutput_To);
    }

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => saved.Release(Input);

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => saved.Keep(Input, x);
}
