using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>The forward function of an island.</summary>
/// <param name="x">Input, a leaf of the local graph.</param>
/// <param name="weights">The parameters' data in order, leaves of the local graph.</param>
/// <param name="context">The micro-batch.</param>
public delegate Tensor IslandForward(Tensor x, IReadOnlyList<Tensor> weights, ForwardContext context);

/// <summary>
/// A layer written as a forward function only: libtorch's autograd runs locally between detached boundaries (DESIGN D4). Both halves of
/// the backward happen in <see cref="BackwardInput"/>, weight gradients included. For new or rare blocks, and the oracle of every
/// hand-written backward.
/// </summary>
public sealed class AutogradIsland : ILayer
{
    private const int Output = 0;
    private const int Input = 1; // parameter i is kept in slot Input + 1 + i

    private readonly IslandForward forward;

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; }

    public AutogradIsland(IslandForward forward, IReadOnlyList<Parameter> parameters) => (this.forward, Parameters) = (forward, parameters);

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        using var scope = NewDisposeScope();
        KeepLeaf(Input, x, saved);
        for (var i = 0; i < Parameters.Count; i++) KeepLeaf(Input + 1 + i, Parameters[i].Data, saved);
        using (enable_grad())
        {
            var weights = new Tensor[Parameters.Count];
            for (var i = 0; i < weights.Length; i++) weights[i] = saved.Peek(Input + 1 + i);
            var output = forward(saved.Peek(Input), weights, saved.Context);
            saved.Keep(Output, output);
            return output.detach().MoveToOuterDisposeScope();
        }
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using var scope = NewDisposeScope();
        var leaves = new List<Tensor>();
        if (IsDifferentiable(saved.Peek(Input))) leaves.Add(saved.Peek(Input));
        for (var i = 0; i < Parameters.Count; i++) leaves.Add(saved.Peek(Input + 1 + i));
        var gradients = autograd.grad([saved.Peek(Output)], leaves, [gradOutput], allow_unused: true);
        var first = leaves.Count - Parameters.Count;
        for (var i = 0; i < Parameters.Count; i++)
            if (gradients[first + i] is { IsInvalid: false } gradient) WeightGradient.Add(Parameters[i], gradient);
        var gradInput = first == 1 && gradients[0] is { IsInvalid: false } given ? given.detach() : zeros_like(saved.Peek(Input)).detach();
        saved.Drop();
        return gradInput.MoveToOuterDisposeScope();
    }

    /// <summary>Nothing is left to do.</summary>
    public void BackwardWeight(Saved saved) { }

    /// <summary>The kept handle itself becomes the leaf: an alias made later would not be part of the graph.</summary>
    private static void KeepLeaf(int slot, Tensor value, Saved saved)
    {
        using var detached = value.detach();
        saved.Keep(slot, detached);
        if (IsDifferentiable(value)) saved.Peek(slot).requires_grad_(true);
    }

    private static bool IsDifferentiable(Tensor tensor) => tensor.is_floating_point();
}
