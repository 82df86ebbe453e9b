using System.Numerics;

namespace Megatron.Compute.Tokenization;

/// <summary>What a pair of tokens becomes.</summary>
/// <param name="Rank">Place in the list of merges; lower first. <see cref="int.MaxValue"/>: the pair is not merged.</param>
/// <param name="Id">Id of the merged token.</param>
internal readonly record struct Merge(int Rank, int Id)
{
    /// <summary>The pair is not merged.</summary>
    public static Merge None => new(int.MaxValue, -1);
}

/// <summary>
/// Pair of ids to merge: a hash table with open addressing. Most questions are about pairs that are never merged, and such an answer costs
/// one cache line here; that decides the speed on words not seen before.
/// </summary>
internal sealed class MergeTable
{
    private const ulong Empty = ulong.MaxValue;

    private readonly ulong[] _pairs;
    private readonly Merge[] _merges;
    private readonly int _shift;

    /// <param name="capacity">Largest number of pairs.</param>
    public MergeTable(int capacity)
    {
        var bits = Math.Max(4, BitOperations.Log2((uint)Math.Max(1, capacity)) + 2);
        _pairs = new ulong[1 << bits];
        _merges = new Merge[1 << bits];
        _shift = 64 - bits;
        Array.Fill(_pairs, Empty);
    }

    /// <summary>The merge of a pair, or <see cref="Merge.None"/>.</summary>
    public Merge this[int left, int right]
    {
        get
        {
            var slot = Slot(Key(left, right));
            return _pairs[slot] == Empty ? Merge.None : _merges[slot];
        }

        set
        {
            var slot = Slot(Key(left, right));
            _pairs[slot] = Key(left, right);
            _merges[slot] = value;
        }
    }

    private static ulong Key(int left, int right) => ((ulong)(uint)left << 32) | (uint)right;

    /// <summary>Where the pair is or would be. The table is at most half full, so the search ends.</summary>
    private int Slot(ulong key)
    {
        // Fibonacci hashing; the fold lets the left id reach all high bits.
        var slot = (int)(((key ^ (key >> 29)) * 0x9E3779B97F4A7C15UL) >> _shift);
        while (_pairs[slot] != key && _pairs[slot] != Empty)
            slot = (slot + 1) & (_pairs.Length - 1);
        return slot;
    }
}
