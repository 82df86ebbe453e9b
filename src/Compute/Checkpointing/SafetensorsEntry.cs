namespace Megatron.Compute.Checkpointing;

/// <summary>One tensor of a safetensors file, as its header states it (checked).</summary>
/// <param name="Name">Key of the tensor; any text, never used as a path.</param>
/// <param name="DType">Element type.</param>
/// <param name="Shape">Extents; empty for a scalar.</param>
/// <param name="Begin">First byte, counted from the end of the header.</param>
/// <param name="End">Byte after the last, counted from the end of the header.</param>
public sealed record SafetensorsEntry(string Name, SafetensorsDType DType, long[] Shape, long Begin, long End)
{
    /// <summary>Bytes of the tensor.</summary>
    public long SizeBytes => End - Begin;

    /// <summary>Elements of the tensor.</summary>
    public long NumElements => Shape.Aggregate(1L, (product, extent) => product * extent);

    /// <summary>Shape as text, e.g. <c>[160, 32]</c>.</summary>
    public string ShapeText => $"[{string.Join(", ", Shape)}]";
}
