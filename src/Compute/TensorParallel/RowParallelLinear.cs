using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// y = x Wᵀ with W split by input columns over the tensor-parallel group (arXiv 1909.08053, section 3): the input holds this rank's
/// features, the partial products are summed over the group (all-reduce, or reduce-scatter along the tokens under sequence parallelism).
/// </summary>
/// <remarks>Shape letters: T tokens, t tokens outside the region, i = I / tp input features of this rank, O output features.</remarks>
public sealed class RowParallelLinear : IInputRestorable
{
    private const int Input = 0, GradOutput = 1; // slots
    private const int Products = 0;              // child

    private readonly LinearProducts products;
    private readonly SequenceParallelRegion region;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="weight_Oi">This rank's columns.</param>
    public RowParallelLinear(Parameter weight_Oi, SequenceParallelRegion region, ProductOptions options) =>
        (products, this.region, Parameters) = (new LinearProducts(weight_Oi, bias_O: null, options), region, [weight_Oi]);

    /// <param name="x_Ti">[T, i]; kept.</param>
    /// <returns>[t, O], fresh.</returns>
    public Tensor Forward(Tensor x_Ti, Saved saved) => ForwardAdd(x_Ti, residual_tO: null, saved);

    /// <summary>The output with <paramref name="residual_tO"/> added.</summary>
    /// <param name="x_Ti">[T, i]; kept.</param>
    /// <param name="residual_tO">[t, O], or null.</param>
    /// <returns>[t, O], fresh.</returns>
    public Tensor ForwardAdd(Tensor x_Ti, Tensor? residual_tO, Saved saved)
    {
        saved.Keep(Input, x_Ti);
        if (region.Group.Size == 1) return products.Output(x_Ti, saved.Child(Products), residual_tO);
        var output_tO = region.ThenReduce(x_Ti, rows_Ti => products.Output(rows_Ti, saved.Child(Products)));
        using var scope = NewDisposeScope(); // for the handle that add_ may return
        if (residual_tO is not null) output_tO.add_(residual_tO);
        return output_tO;
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput_tO, Saved saved)
    {
        var gradInput_Ti = region.GatherThen(gradOutput_tO, rows_TO => products.InputGradient(rows_TO, saved.Child(Products)), out var gradOutput_TO);
        using (gradOutput_TO)
            if (!products.KeepsGradient(gradOutput_TO)) saved.Keep(GradOutput, gradOutput_TO);
        return gradInput_Ti;
    }

    /// <inheritdoc/>
    public bool TakesInputLate => true;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => saved.Release(Input);

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => saved.Keep(Input, x);

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        if (saved.Has(GradOutput)) products.AddGradient(saved.Take(GradOutput), saved.Take(Input));
        else products.AddKeptGradient(saved.Take(Input), saved.Child(Products));
    }
}
