namespace Megatron.Compute.Optimizers;

/// <summary>Elements [Begin, End) of a flat buffer.</summary>
public readonly record struct FlatRange(long Begin, long End)
{
    /// <summary>Number of elements; never negative.</summary>
    public long Length => End - Begin;

    /// <summary>The elements that both ranges hold; empty (Length 0) when there are none.</summary>
    public FlatRange Intersect(FlatRange other)
    {
        var begin = Math.Max(Begin, other.Begin);
        return new FlatRange(begin, Math.Max(begin, Math.Min(End, other.End)));
    }
}
