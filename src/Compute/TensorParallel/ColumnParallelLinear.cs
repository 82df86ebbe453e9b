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
    private const int Input = 0, GradOutput = 1; // slots
    private const int Products = 0;              // child

    private readonly Parameter? bias_o;
    private readonly SequenceParallelRegion region;
    private readonly LinearProducts products;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="weight_oI">This rank's rows.</param>
    /// <param name="bias_o">This rank's part of the bias, or null.</param>
    public ColumnParallelLinear(Parameter weight_oI, Parameter? bias_o, SequenceParallelRegion region, ProductOptions options)
    {
        products = new LinearProducts(weight_oI, bias_o, options);
        (this.bias_o, this.region) = (bias_o, region);
        Parameters = bias_o is null ? [weight_oI] : [weight_oI, bias_o];
    }

    /// <param name="x_tI">[t, I]; kept.</param>
    /// <returns>[T, o], fresh.</returns>
    public Tensor Forward(Tensor x_tI, Saved saved)
    {
        saved.Keep(Input, x_tI);
        return region.GatherThen(x_tI, x_TI => products.Output(x_TI, saved.Child(Products)));
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput_To, Saved saved)
    {
        if (bias_o is not null || !products.KeepsGradient(gradOutput_To)) saved.Keep(GradOutput, gradOutput_To);
        return region.ThenReduce(gradOutput_To, grad_To => products.InputGradient(grad_To, saved.Child(Products)));
    }

    /// <summary>Gathers the kept input again under sequence parallelism, so that only 1/tp of it is stored meanwhile.</summary>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput_To = saved.Has(GradOutput) ? saved.Take(GradOutput) : null;
        if (gradOutput_To is null || products.KeepsGradient(gradOutput_To)) products.AddKeptGradient(region.Gather(saved.Take(Input)), saved.Child(Products));
        else region.ForEachGathered(saved.Take(Input), gradOutput_To, products.AddGradient);
        if (bias_o is not null && gradOutput_To is not null) WeightGradient.AccumulateBias(bias_o, gradOutput_To);
    }

    /// <inheritdoc/>
    public bool TakesInputLate => true;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => saved.Release(Input);

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => saved.Keep(Input, x);
}
