using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>
/// Activation recompute around a layer: Forward keeps the input alone, BackwardInput runs the layer's Forward again and then its backward.
/// Layers are pure and random numbers counter-based, so the second run has the bits of the first.
/// </summary>
public sealed class CheckpointedBlock(ILayer inner) : IInputRestorable
{
    private const int Input = 0;
    private const int Inner = 0; // child

    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters => inner.Parameters;

    /// <inheritdoc/>
    public Tensor Forward(Tensor x, Saved saved)
    {
        saved.Keep(Input, x);
        var output = inner.Forward(x, saved.Child(Inner));
        saved.Child(Inner).Drop();
        return output;
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        using (var x = saved.Take(Input))
            inner.Forward(x, saved.Child(Inner)).Dispose();
        return inner.BackwardInput(gradOutput, saved.Child(Inner));
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved) => inner.BackwardWeight(saved.Child(Inner));

    /// <inheritdoc/>
    public bool TakesInputLate => false;

    /// <inheritdoc/>
    public void DiscardInput(Saved saved) => saved.Release(Input);

    /// <inheritdoc/>
    public void RestoreInput(Tensor x, Saved saved) => saved.Keep(Input, x);
}
