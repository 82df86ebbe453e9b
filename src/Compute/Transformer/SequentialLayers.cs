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
    public Tensor BackwardInput(Tensor gradOutput, Saved saved)
    {
        var current = gradOutput.alias();
        for (var i = layers.Count - 1; i >= 0; i--)
        {
            var next = layers[i].BackwardInput(current, saved.Child(i));
            current.Dispose();
            current = next;
        }
        return current;
    }

    /// <inheritdoc/>
    public void BackwardWeight(Saved saved)
    {
        for (var i = layers.Count - 1; i >= 0; i--) layers[i].BackwardWeight(saved.Child(i));
    }
}
