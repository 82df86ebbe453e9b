using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>An MLP that every token passes, scaled by a sigmoid gate: sigmoid(x · gᵀ) · mlp(x) (Qwen1.5-MoE, Qwen2-MoE).</summary>
/// <remarks>Shape letters: T tokens, H hidden.</remarks>
public sealed class SharedExpert : IInputRestorable
{
    private const int Input = 0, Output = 1, Gate = 2, GradLogit = 3; // slots
    private const int Mlp = 0;                                        // child

    private readonly IInputRestorable mlp;
    private readonly Parameter gate_1H;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <param name="mlp">[T, H] to [T, H].</param>
    /// <param name="gate_1H">Weight of the gate, on every rank whole.</param>
    public SharedExpert(IInputRestorable mlp, Parameter gate_1H)
    {
        (this.mlp, this.gate_1H) = (mlp, gate_1H);
        Parameters = [.. mlp.Parameters, gate_1H];
    }

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        var output_TH = mlp.Forward(x, saved.Child(Mlp));
        var gate_T1 = nn.functional.linear(x, gate_1H.Data).sigmoid_();
        saved.Keep(Input, x);
        saved.Keep(Output, output_TH);
        saved.Keep(Gate, gate_T1);
        return output_TH.mul(gate_T1).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gate_T1 = saved.Take(Gate);
        var gradGate_T1 = (gradOutput * saved.Take(Output)).sum(-1, keepdim: true);
        var gradLogit_T1 = gradGate_T1 * gate_T1 * (1 - gate_T1);
        saved.Keep(GradLogit, gradLogit_T1);
        var gradInput = mlp.BackwardInput(gradOutput * gate_T1, saved.Child(Mlp));
        return gradInput.addmm(gradLogit_T1, gate_1H.Data, beta: 1, alpha: 1).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        using var scope = NewDisposeScope();
        WeightGradient.Accumulate(gate_1H, saved.Take(GradLogit), saved.Take(Input), ProductOptions.Unmeasured);
        mlp.BackwardWeight(saved.Child(Mlp));
    }

    /// <inheritdoc/>
    public bool TakesInputLate => false;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved)
    {
        saved.Release(Input);
        mlp.DiscardInput(saved.Child(Mlp));
    }

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved)
    {
        saved.Keep(Input, x);
        mlp.RestoreInput(x, saved.Child(Mlp));
    }
}
