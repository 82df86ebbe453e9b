using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// A layer with an explicit forward and a backward in two halves (DESIGN D4): no autograd graph, weight gradients go straight into the
/// fp32 main-grad buffer, and a zero-bubble schedule may run the weight half later. All calls happen on the rank's thread, and inside a
/// dispose scope of the caller; what a method returns belongs to that scope.
/// </summary>
public interface ILayer
{
    /// <summary>This rank's weights, in a fixed order.</summary>
    IReadOnlyList<Parameter> Parameters { get; }

    /// <summary>
    /// Computes the output and leaves in <paramref name="saved"/> what the backward halves need. Pure apart from that: the same input,
    /// context and weights give the same bits, so running it again is recompute.
    /// </summary>
    /// <param name="x">Input; never returned itself, never disposed. Usually [T, hidden] in the model dtype.</param>
    Tensor Forward(Tensor x, Saved saved);

    /// <summary>
    /// Gradient with respect to the input. Called once after Forward (or after a recompute); frees what only it needed and leaves what
    /// <see cref="BackwardWeight"/> needs. Does not touch main gradients.
    /// </summary>
    /// <param name="gradOutput">Gradient of the loss with respect to Forward's result; same shape and dtype.</param>
    Tensor BackwardInput(Tensor gradOutput, Saved saved);

    /// <summary>
    /// Adds the weight gradients to <see cref="Parameter.MainGrad"/> and frees everything left in <paramref name="saved"/>. Called once,
    /// any time after <see cref="BackwardInput"/>.
    /// </summary>
    void BackwardWeight(Saved saved);
}
