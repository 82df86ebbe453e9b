using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Data;

/// <summary>
/// Which samples share a pack, as lists of sample numbers. A pack is what a batch counts: one or more whole samples that lie in one row with no
/// attention between them. Immutable.
/// </summary>
public sealed class PackPlan
{
    private readonly int[] _samples;
    private readonly int[] _begins;

    /// <param name="samples">Sample numbers of all packs, one pack after another.</param>
    /// <param name="begins">[packs + 1] where each pack begins in <paramref name="samples"/>.</param>
    /// <param name="capacity">Most tokens of a pack.</param>
    internal PackPlan(int[] samples, int[] begins, int capacity) => (_samples, _begins, Capacity) = (samples, begins, capacity);

    /// <summary>Packs of one epoch.</summary>
    public int Count => _begins.Length - 1;

    /// <summary>Samples in all packs.</summary>
    public int NumSamples => _samples.Length;

    /// <summary>Most tokens of a pack.</summary>
    public int Capacity { get; }

    /// <summary>Sample numbers of one pack, ascending within what was packed together.</summary>
    public ReadOnlySpan<int> this[int pack] => _samples.AsSpan(_begins[pack].._begins[pack + 1]);

    /// <summary>Share of the packs' capacity that holds tokens.</summary>
    /// <param name="lengthOf">Tokens of a sample.</param>
    public double FillRate(Func<int, int> lengthOf)
    {
        long tokens = 0;
        foreach (var sample in _samples) tokens += lengthOf(sample);
        return tokens / ((double)Capacity * Count);
    }

    /// <summary>Adds the lists to a content hash.</summary>
    public void AppendTo(XxHash64 hash)
    {
        hash.Append(MemoryMarshal.AsBytes([Capacity, Count]));
        hash.Append(MemoryMarshal.AsBytes(_begins.AsSpan()));
        hash.Append(MemoryMarshal.AsBytes(_samples.AsSpan()));
    }
}
