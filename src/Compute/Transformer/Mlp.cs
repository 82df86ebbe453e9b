using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>
/// Dense gated MLP: down(silu(gate(x)) · up(x)). Gate and up are one fused matrix of this rank's gate rows followed by its up rows.
/// </summary>
/// <remarks>Shape letters: T tokens, H hidden, f = F / tp features of this rank.</remarks>
public sealed class Mlp : IInputRestorable
{
    private const int GateUp = 0;                   // slot
    private const int GateUpLinear = 0, DownLinear = 1; // children

    private readonly ColumnParallelLinear gateUp;
    private readonly RowParallelLinear down;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="prefix">Hugging Face prefix such as <c>model.layers.0.mlp</c>.</param>
    /// <param name="ffnHiddenSize">F, divisible by the tensor-parallel size.</param>
    public Mlp(LayerContext context, string prefix, int ffnHiddenSize)
    {
        var (hidden, tp, rank) = (context.Config.HiddenSize, context.TensorParallelSize, context.Region.Group.Rank);
        var local = Divide.Exactly(ffnHiddenSize, tp, "intermediate_size", "tensor_model_parallel_size");
        var traits = new ParameterTraits { Decays = true, IsTensorSharded = true };
        TensorBlock Rows(string name, long flatOffset) => new(name, [ffnHiddenSize, hidden], [rank * local, 0], [local, hidden], flatOffset);
        var gateUpWeight = context.Weights.Create(
            $"{prefix}.gate_up_proj.weight", [2 * local, hidden],
            [Rows($"{prefix}.gate_proj.weight", 0), Rows($"{prefix}.up_proj.weight", (long)local * hidden)], traits);
        var downWeight = context.Weights.Create(
            $"{prefix}.down_proj.weight", [hidden, local],
            [new TensorBlock($"{prefix}.down_proj.weight", [hidden, ffnHiddenSize], [0, rank * local], [hidden, local], 0)], traits);
        gateUp = new ColumnParallelLinear(gateUpWeight, bias_o: null, context.Region, context.Products);
        down = new RowParallelLinear(downWeight, context.Region, context.Products);
        Parameters = [gateUpWeight, downWeight];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved) => ForwardAdd(x, residual: null, saved);

    /// <summary>The output with <paramref name="residual"/> added: on a GPU the last product does it.</summary>
    /// <param name="residual">Like the output, or null.</param>
    public Tensor ForwardAdd(Tensor x, Tensor? residual, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gateUp_T2f = gateUp.Forward(x, saved.Child(GateUpLinear));
        saved.Keep(GateUp, gateUp_T2f);
        var output = down.ForwardAdd(SwiGlu.Forward(gateUp_T2f), residual, saved.Child(DownLinear));
        if (SwiGlu.GivesOutputAgain(gateUp_T2f)) down.DiscardInput(saved.Child(DownLinear));
        return output.MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradActivation_Tf = down.BackwardInput(gradOutput, saved.Child(DownLinear));
        var (gradGateUp_T2f, activation_Tf) = SwiGlu.Backward(gradActivation_Tf, saved.Take(GateUp));
        if (activation_Tf is not null) down.RestoreInput(activation_Tf, saved.Child(DownLinear));
        return gateUp.BackwardInput(gradGateUp_T2f, saved.Child(GateUpLinear)).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        down.BackwardWeight(saved.Child(DownLinear));
        gateUp.BackwardWeight(saved.Child(GateUpLinear));
    }

    /// <inheritdoc/>
    public bool TakesInputLate => true;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => gateUp.DiscardInput(saved.Child(GateUpLinear));

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => gateUp.RestoreInput(x, saved.Child(GateUpLinear));
}
