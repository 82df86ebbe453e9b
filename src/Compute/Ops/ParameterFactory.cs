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
}
