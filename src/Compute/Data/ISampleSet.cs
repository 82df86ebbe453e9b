using System.Collections;
using System.IO.Hashing;

namespace Megatron.Compute.Data;

/// <summary>
/// Encoded samples by number. Lengths are known without reading a sample, so that packing needs no tokens. Reading is safe from several threads.
/// </summary>
public interface ISampleSet : IReadOnlyList<EncodedSample>
{
    /// <summary>Tokens of sample <paramref name="index"/>.</summary>
    int LengthOf(int index);

    /// <summary>Sum of the loss weights over the targets of sample <paramref name="index"/>: what it can teach.</summary>
    double TargetWeightOf(int index);

    /// <summary>Adds all that decides the samples and their order to a hash: equal hashes, equal samples.</summary>
    void AppendTo(XxHash64 hash);
}

/// <summary>Samples held in memory.</summary>
public sealed class MemorySamples(IReadOnlyList<EncodedSample> samples) : ISampleSet
{
    /// <inheritdoc/>
    public int Count => samples.Count;

    /// <inheritdoc/>
    public EncodedSample this[int index] => samples[index];

    /// <inheritdoc/>
    public int LengthOf(int index) => samples[index].Length;

    /// <inheritdoc/>
    public double TargetWeightOf(int index) => samples[index].TargetWeight;

    /// <inheritdoc/>
    public void AppendTo(XxHash64 hash)
    {
        foreach (var sample in samples) sample.AppendTo(hash);
    }

    /// <inheritdoc/>
    public IEnumerator<EncodedSample> GetEnumerator() => samples.GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
