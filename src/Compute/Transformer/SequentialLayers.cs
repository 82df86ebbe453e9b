using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Transformer;

/// <summary>Layers one after another; child i of the store belongs to layer i.</summary>
public sealed class SequentialLayers(IReadOnlyList<ILayer> layers) : ILayer
{
    /// <inheritdoc/>
    public IReadOnlyList<Parameter> Parameters { get; } = [.. layers.SelectMany(layer => layer.Parameters)];

    /// <summary>Outside training nothing is kept beyond the layer at hand.</summary>
    public Tensor Forward(Tensor x, Saved saved)
    {
        var current = x.alias();
        for (var i = 0; i < layers.Count; i++)
        {
            var next = layers[i].Forward(current, saved.Child(i));
            current.Dispose();
            current = next;
            if (!saved.Context.IsTraining) saved.Child(i).Drop();
        }
        return current;
    }

    /// <inheritdoc/>
    public Tensor BackwardInput(Tensor gradOutput, Saved saved) => Backward(gradOutput, saved, withWeights: false);

    /// <summary>
    /// Both halves, layer by layer: what a layer keeps is free before the next one's backward. <see cref="BackwardInput"/> of all layers before the first
    /// <see cref="BackwardWeight"/> holds every layer's output gradients until then, which is nearly as much as the forward kept.
    /// </summary>
    /// <inheritdoc cref="BackwardInput"/>
    public Tensor Backward(Tensor gradOutput, Saved saved) => Backward(gradOutput, saved, withWeights: true);

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        for (var i = layers.Count - 1; i >= 0; i--) layers[i].BackwardWeight(saved.Child(i));
    }

    private Tensor Backward(Tensor gradOutput, Saved saved, bool withWeights)
    {
        var current = gradOutput.alias();
        for (var i = layers.Count - 1; i >= 0; i--)
        {
            var next = layers[i].BackwardInput(current, saved.Child(i));
            current.Dispose();
            current = next;
            if (withWeights) layers[i].BackwardWeight(saved.Child(i));
        }
        return current;
    }
}
