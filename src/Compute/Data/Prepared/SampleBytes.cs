using System.Runtime.InteropServices;

namespace Megatron.Compute.Data.Prepared;

/// <summary>
/// The stored form of a sample, little endian: T token ids (int32); the token that the last position predicts (int32, −1 for none); then one bit
/// for each position that has a target (rounded up to whole int32), or T loss weights (fp32) where they are not all 1. Labels are not stored: a
/// target is always the next token.
/// </summary>
internal static class SampleBytes
{
    private const int NoToken = -1;

    /// <summary>Appends a sample.</summary>
    public static void Write(EncodedSample sample, List<byte> bytes)
    {
        var last = sample.Labels[^1];
        Append<int>(bytes, sample.TokenIds);
        Append<int>(bytes, [last == MicroBatch.IgnoreIndex ? NoToken : last]);
        CheckShift(sample);
        if (sample.LossWeights is { } weights)
        {
            Append<float>(bytes, weights);
            return;
        }
        var mask = new uint[(sample.Length + 31) / 32];
        for (var i = 0; i < sample.Length; i++)
            if (sample.Labels[i] != MicroBatch.IgnoreIndex) mask[i >> 5] |= 1u << (i & 31);
        Append<uint>(bytes, mask);
    }

    /// <summary>Bytes of a stored sample.</summary>
    public static int SizeOf(int length, bool isWeighted) => 4 * (length + 1 + (isWeighted ? length : (length + 31) / 32));

    /// <summary>The sample in the bytes of <see cref="SizeOf"/>.</summary>
    public static EncodedSample Read(ReadOnlySpan<byte> bytes, int length, bool isWeighted)
    {
        var numbers = MemoryMarshal.Cast<byte, int>(bytes);
        var ids = numbers[..length].ToArray();
        var next = numbers[length];
        var tail = bytes[(4 * (length + 1))..];
        var labels = new int[length];
        var weights = isWeighted ? MemoryMarshal.Cast<byte, float>(tail)[..length].ToArray() : null;
        var mask = MemoryMarshal.Cast<byte, uint>(tail);
        for (var i = 0; i < length; i++)
        {
            var isTarget = weights is null ? (mask[i >> 5] >> (i & 31) & 1) != 0 : weights[i] != 0;
            labels[i] = !isTarget ? MicroBatch.IgnoreIndex : i + 1 < length ? ids[i + 1] : next;
        }
        return new EncodedSample(ids, labels, weights);
    }

    private static void CheckShift(EncodedSample sample)
    {
        for (var i = 0; i + 1 < sample.Length; i++)
            if (sample.Labels[i] != MicroBatch.IgnoreIndex && sample.Labels[i] != sample.TokenIds[i + 1])
                throw new InvalidOperationException($"label {sample.Labels[i]} at position {i} is not the next token {sample.TokenIds[i + 1]}");
    }

    private static void Append<T>(List<byte> bytes, ReadOnlySpan<T> values) where T : unmanaged
    {
        var source = MemoryMarshal.AsBytes(values);
        var begin = bytes.Count;
        CollectionsMarshal.SetCount(bytes, begin + source.Length);
        source.CopyTo(CollectionsMarshal.AsSpan(bytes)[begin..]);
    }
}
