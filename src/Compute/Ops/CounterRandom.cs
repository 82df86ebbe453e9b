using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Megatron.Compute.Ops;

/// <summary>
/// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). A number is a
/// pure function of its coordinates (seed, step, stream, global token or element, feature), so it does not depend on the parallel layout,
/// on the order of computation or on recompute (DESIGN D12).
/// </summary>
public readonly struct CounterRandom
{
    private const uint Multiplier0 = 0xD2511F53, Multiplier1 = 0xCD9E8D57, Weyl0 = 0x9E3779B9, Weyl1 = 0xBB67AE85;
    private const int Rounds = 10;

    private readonly uint key0;
    private readonly uint key1;

    /// <param name="key">64-bit Philox key.</param>
    public CounterRandom(ulong key) => (key0, key1) = ((uint)key, (uint)(key >> 32));

    /// <summary>The generator of one random stream of one step.</summary>
    /// <param name="seed">The run's seed.</param>
    /// <param name="step">Optimizer step, 0-based; 0 for initialisation.</param>
    /// <param name="stream">Distinguishes users: a layer's dropout, a tensor's initial values.</param>
    public static CounterRandom ForStream(long seed, long step, ulong stream) =>
        new(Mix(Mix(Mix((ulong)seed) ^ (ulong)step) ^ stream));

    /// <summary>Four 32-bit numbers for one 128-bit counter.</summary>
    public (uint X0, uint X1, uint X2, uint X3) Block(uint c0, uint c1, uint c2, uint c3)
    {
        var (k0, k1) = (key0, key1);
        for (var round = 0; round < Rounds; round++)
        {
            var product0 = (ulong)Multiplier0 * c0;
            var product1 = (ulong)Multiplier1 * c2;
            (c0, c1, c2, c3) = ((uint)(product1 >> 32) ^ c1 ^ k0, (uint)product1, (uint)(product0 >> 32) ^ c3 ^ k1, (uint)product0);
            k0 += Weyl0;
            k1 += Weyl1;
        }
        return (c0, c1, c2, c3);
    }

    /// <summary>
    /// Dropout decisions of one token: 1 where the value is kept, 0 where it is dropped with probability
    /// <paramref name="dropProbability"/>. Feature f uses number f mod 4 of block f / 4.
    /// </summary>
    /// <param name="token">Global token index.</param>
    /// <param name="subStream">Further coordinate, for example the attention head.</param>
    public void FillKeep(Span<byte> keep, ulong token, uint subStream, double dropProbability)
    {
        var threshold = (uint)Math.Min(dropProbability * 4294967296.0, uint.MaxValue);
        var done = Avx2.IsSupported ? FillKeepVectorized(keep, token, subStream, threshold) : 0;
        for (var feature = done; feature < keep.Length; feature += 4)
        {
            var (x0, x1, x2, x3) = Block((uint)feature / 4, subStream, (uint)token, (uint)(token >> 32));
            keep[feature] = x0 >= threshold ? (byte)1 : (byte)0;
            if (feature + 1 < keep.Length) keep[feature + 1] = x1 >= threshold ? (byte)1 : (byte)0;
            if (feature + 2 < keep.Length) keep[feature + 2] = x2 >= threshold ? (byte)1 : (byte)0;
            if (feature + 3 < keep.Length) keep[feature + 3] = x3 >= threshold ? (byte)1 : (byte)0;
        }
    }

    /// <summary>Standard normal values (Box–Muller) of consecutive elements of one tensor.</summary>
    /// <param name="firstElement">Index of the first element in the whole tensor.</param>
    public void FillNormal(Span<float> values, long firstElement)
    {
        var index = 0;
        while (index < values.Length)
        {
            var element = (ulong)(firstElement + index);
            var (x0, x1, x2, x3) = Block((uint)(element / 4), (uint)(element / 4 >> 32), 0, 0);
            var lane = (int)(element % 4);
            if (lane == 0 && index + 3 < values.Length)
            {
                (values[index], values[index + 1]) = BoxMuller(x0, x1);
                (values[index + 2], values[index + 3]) = BoxMuller(x2, x3);
                index += 4;
                continue;
            }
            var (even, odd) = lane < 2 ? BoxMuller(x0, x1) : BoxMuller(x2, x3);
            values[index++] = lane % 2 == 0 ? even : odd;
        }
    }

    /// <summary>64-bit FNV-1a of a name: the stream of a tensor's initial values.</summary>
    public static ulong StreamOf(string name)
    {
        var hash = 14695981039346656037UL;
        foreach (var letter in name) hash = (hash ^ letter) * 1099511628211UL;
        return hash;
    }

    /// <summary>Four blocks at a time, one per 64-bit lane; returns how many features are done (a multiple of 16).</summary>
    private int FillKeepVectorized(Span<byte> keep, ulong token, uint subStream, uint threshold)
    {
        Span<ulong> numbers = stackalloc ulong[16];
        var mask = Vector256.Create(0xFFFFFFFFUL);
        var (multiplier0, multiplier1) = (Vector256.Create((ulong)Multiplier0), Vector256.Create((ulong)Multiplier1));
        var feature = 0;
        for (; feature + 16 <= keep.Length; feature += 16)
        {
            var block = (ulong)feature / 4;
            var c0 = Vector256.Create(block, block + 1, block + 2, block + 3);
            var c1 = Vector256.Create((ulong)subStream);
            var c2 = Vector256.Create(token & 0xFFFFFFFF);
            var c3 = Vector256.Create(token >> 32);
            var (k0, k1) = (key0, key1);
            for (var round = 0; round < Rounds; round++)
            {
                var product0 = Avx2.Multiply(c0.AsUInt32(), multiplier0.AsUInt32());
                var product1 = Avx2.Multiply(c2.AsUInt32(), multiplier1.AsUInt32());
                c0 = Vector256.ShiftRightLogical(product1, 32) ^ c1 ^ Vector256.Create((ulong)k0);
                c2 = Vector256.ShiftRightLogical(product0, 32) ^ c3 ^ Vector256.Create((ulong)k1);
                c1 = product1 & mask;
                c3 = product0 & mask;
                k0 += Weyl0;
                k1 += Weyl1;
            }
            c0.CopyTo(numbers);
            c1.CopyTo(numbers[4..]);
            c2.CopyTo(numbers[8..]);
            c3.CopyTo(numbers[12..]);
            for (var i = 0; i < 16; i++) keep[feature + i] = numbers[i % 4 * 4 + i / 4] >= threshold ? (byte)1 : (byte)0;
        }
        return feature;
    }

    private static (float, float) BoxMuller(uint x0, uint x1)
    {
        var radius = Math.Sqrt(-2.0 * Math.Log((x0 + 0.5) / 4294967296.0));
        var (sin, cos) = Math.SinCos(2.0 * Math.PI * (x1 + 0.5) / 4294967296.0);
        return ((float)(radius * cos), (float)(radius * sin));
    }

    /// <summary>SplitMix64's finaliser: spreads close keys apart.</summary>
    private static ulong Mix(ulong value)
    {
        value += 0x9E3779B97F4A7C15UL;
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9UL;
        value = (value ^ (value >> 27)) * 0x94D049BB133111EBUL;
        return value ^ (value >> 31);
    }
}
