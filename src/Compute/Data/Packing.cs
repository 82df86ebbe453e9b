namespace Megatron.Compute.Data;

/// <summary>How samples are put into packs.</summary>
public enum PackingStrategy
{
    /// <summary>Best fit, longest first, over windows of samples: fills packs best.</summary>
    BinPack,

    /// <summary>In the order of the samples: a pack is closed when the next sample does not fit.</summary>
    Sequential,
}

/// <summary>
/// Packs from sample lengths: a pure function of lengths, capacity and strategy, the same on every machine. Samples are never cut.
/// </summary>
public static class Packing
{
    /// <summary>Samples that are packed together; packs that are not full yet take part in the next window.</summary>
    public const int WindowSize = 1024;

    /// <summary>Packs all samples.</summary>
    /// <param name="lengths">Tokens of each sample, 1 … <paramref name="capacity"/>.</param>
    /// <param name="capacity">Most tokens of a pack.</param>
    /// <param name="strategy">How.</param>
    /// <exception cref="ArgumentOutOfRangeException">A sample does not fit in an empty pack.</exception>
    public static PackPlan Plan(ReadOnlySpan<int> lengths, int capacity, PackingStrategy strategy)
    {
        var samples = new int[lengths.Length];
        var begins = new List<int> { 0 };
        var count = 0;
        var packer = new WindowPacker(capacity, strategy);
        for (var first = 0; first < lengths.Length; first += WindowSize)
        {
            var end = Math.Min(first + WindowSize, lengths.Length);
            for (var i = first; i < end; i++) packer.Add(i, lengths[i]);
            foreach (var pack in packer.Close(isLast: end == lengths.Length))
            {
                pack.CopyTo(samples, count);
                count += pack.Length;
                begins.Add(count);
            }
        }
        return new PackPlan(samples, [.. begins], capacity);
    }
}
