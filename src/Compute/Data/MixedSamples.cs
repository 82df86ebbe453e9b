using System.Collections;
using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Data;

/// <summary>One sample of one of several sets.</summary>
internal readonly record struct SampleRef(int Set, int Sample);

/// <summary>Samples of several sets in a chosen order, each as often as it was chosen: lists of numbers only.</summary>
internal sealed class MixedSamples(IReadOnlyList<ISampleSet> sets, SampleRef[] order) : ISampleSet
{
    /// <inheritdoc/>
    public int Count => order.Length;

    /// <inheritdoc/>
    public EncodedSample this[int index] => sets[order[index].Set][order[index].Sample];

    /// <inheritdoc/>
    public int LengthOf(int index) => sets[order[index].Set].LengthOf(order[index].Sample);

    /// <inheritdoc/>
    public double TargetWeightOf(int index) => sets[order[index].Set].TargetWeightOf(order[index].Sample);

    /// <inheritdoc/>
    public void AppendTo(XxHash64 hash)
    {
        // Only what was chosen from: another validation set leaves the training data what they were.
        var isUsed = new bool[sets.Count];
        foreach (var sample in order) isUsed[sample.Set] = true;
        for (var set = 0; set < sets.Count; set++)
            if (isUsed[set]) sets[set].AppendTo(hash);
        hash.Append(MemoryMarshal.AsBytes(order.AsSpan()));
    }

    /// <inheritdoc/>
    public IEnumerator<EncodedSample> GetEnumerator()
    {
        for (var i = 0; i < Count; i++) yield return this[i];
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
