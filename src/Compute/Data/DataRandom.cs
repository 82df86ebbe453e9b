using System.Buffers.Binary;
using System.IO.Hashing;
using System.Numerics;
using System.Text;

namespace Megatron.Compute.Data;

/// <summary>
/// The one generator behind every random decision about data: split, sampling, shuffle, epoch order. xoshiro256** (Blackman and Vigna,
/// arXiv:1805.01407, figure 1), its state filled by SplitMix64 from XxHash64 of (seed, purpose, index). Each decision has a stream of its
/// own, so adding a data set or an epoch does not move the numbers of another. Not for cryptography; not for dropout (that is Philox).
/// </summary>
public sealed class DataRandom
{
    private ulong _s0, _s1, _s2, _s3;

    /// <param name="seed"><c>data_seed</c>, or <c>seed</c> where it is not given.</param>
    /// <param name="purpose">Name of the decision, such as <c>split</c>; part of the stored order, so do not rename it.</param>
    /// <param name="index">Which one of these decisions: the data set's place, the epoch number.</param>
    public DataRandom(ulong seed, string purpose, long index)
    {
        Span<byte> key = stackalloc byte[16];
        BinaryPrimitives.WriteUInt64LittleEndian(key, seed);
        BinaryPrimitives.WriteInt64LittleEndian(key[8..], index);
        var hash = new XxHash64();
        hash.Append(key);
        hash.Append(Encoding.UTF8.GetBytes(purpose));
        var state = hash.GetCurrentHashAsUInt64();
        _s0 = SplitMix64(ref state);
        _s1 = SplitMix64(ref state);
        _s2 = SplitMix64(ref state);
        _s3 = SplitMix64(ref state);
    }

    /// <summary>The next 64 random bits.</summary>
    public ulong NextUInt64()
    {
        var result = BitOperations.RotateLeft(_s1 * 5, 7) * 9;
        var t = _s1 << 17;
        _s2 ^= _s0;
        _s3 ^= _s1;
        _s1 ^= _s2;
        _s0 ^= _s3;
        _s2 ^= t;
        _s3 = BitOperations.RotateLeft(_s3, 45);
        return result;
    }

    /// <summary>A number in [0, <paramref name="bound"/>), each equally likely (Lemire's multiply-and-reject, arXiv:1805.10941).</summary>
    public int NextInt(int bound)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(bound);
        var range = (ulong)bound;
        var high = Math.BigMul(NextUInt64(), range, out ulong low);
        if (low < range)
        {
            var threshold = (0UL - range) % range;
            while (low < threshold) high = Math.BigMul(NextUInt64(), range, out low);
        }
        return (int)high;
    }

    /// <summary>A number in [0, 1): the upper 53 bits of <see cref="NextUInt64"/>.</summary>
    public double NextDouble() => (NextUInt64() >> 11) * (1.0 / (1UL << 53));

    /// <summary>Puts the items in a random order in place (Fisher and Yates, from the end).</summary>
    public void Shuffle<T>(Span<T> items)
    {
        for (var i = items.Length - 1; i > 0; i--)
        {
            var j = NextInt(i + 1);
            (items[i], items[j]) = (items[j], items[i]);
        }
    }

    /// <summary>A random order of 0 … <paramref name="count"/> − 1.</summary>
    public int[] Permutation(int count)
    {
        var order = new int[count];
        for (var i = 0; i < count; i++) order[i] = i;
        Shuffle(order.AsSpan());
        return order;
    }

    private static ulong SplitMix64(ref ulong state)
    {
        var z = state += 0x9E3779B97F4A7C15UL;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9UL;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBUL;
        return z ^ (z >> 31);
    }
}
