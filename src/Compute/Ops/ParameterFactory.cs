using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Allocates a model's parameters in one dtype on one device, without values: they are initialised or loaded afterwards.</summary>
/// <param name="Dtype">Model dtype.</param>
/// <param name="Device">This rank's device.</param>
public sealed record ParameterFactory(ScalarType Dtype, Device Device)
{
    /// <summary>An uninitialised parameter made of <paramref name="blocks"/>.</summary>
    public Parameter Create(string name, long[] shape, IReadOnlyList<TensorBlock> blocks, ParameterTraits traits) =>
        new(name, empty(shape, Dtype, Device), blocks, traits);

    /// <summary>The same where the blocks may end before the parameter does: the rest is padding, 0 from the start.</summary>
    public Parameter CreatePadded(string name, long[] shape, IReadOnlyList<TensorBlock> blocks, ParameterTraits traits)
    {
        var numPadding = shape.Aggregate(1L, (product, extent) => product * extent) - blocks.Sum(block => block.NumElements);
        return numPadding == 0 ? Create(name, shape, blocks, traits) : new Parameter(name, zeros(shape, Dtype, Device), blocks, traits, numPadding);
    }
}
