using System.Numerics;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Data;

/// <summary>A sample that waits for the next window.</summary>
/// <param name="Sample">Its number.</param>
/// <param name="Length">Its tokens.</param>
/// <param name="NumWaits">Windows that it has waited.</param>
internal readonly record struct PendingSample(int Sample, int Length, int NumWaits);

/// <summary>
/// Packs one window of samples after another. Best-fit decreasing: longest sample first (the earlier one of two equals), into the fullest pack
/// that has room for it (the older of two equals), else into a new pack. What is in badly filled packs at the end of a window is packed again
/// with the next one. Not safe for several threads.
/// </summary>
/// <param name="capacity">Most tokens of a pack.</param>
/// <param name="strategy">How.</param>
internal sealed class WindowPacker(int capacity, PackingStrategy strategy)
{
    /// <summary>A pack below this share of the capacity waits for the next window.</summary>
    private const double GoodFill = 0.995;

    /// <summary>Windows that a sample waits at most, so that samples which fit nowhere neither pile up nor are put off for ever.</summary>
    private const int MaxWaits = 2;

    private readonly List<PendingSample> _items = [];
    private readonly List<Pack> _packs = [];
    private readonly RoomIndex _rooms = new(capacity);

    /// <summary>Samples taken up and not yet emitted.</summary>
    public IReadOnlyList<PendingSample> Pending => _items;

    /// <summary>Takes up the next sample of the window.</summary>
    public void Add(int sample, int length) => Add(new PendingSample(sample, length, NumWaits: 0));

    /// <summary>Takes up a sample that <see cref="Pending"/> of another packer held.</summary>
    public void Add(PendingSample item)
    {
        var (sample, length, _) = item;
        if (length < 1 || length > capacity)
            throw new ArgumentOutOfRangeException(nameof(length), length, $"sample {sample} does not fit into a pack of {capacity} tokens");
        _items.Add(item);
    }

    /// <summary>Packs what was added.</summary>
    /// <param name="isLast">True at the end of the data: nothing is kept for a next window.</param>
    /// <returns>The sample numbers of each finished pack, in the order of the pack's first sample.</returns>
    public IReadOnlyList<int[]> Close(bool isLast)
    {
        _packs.Clear();
        if (strategy == PackingStrategy.Sequential) FillInOrder();
        else FillBestFirst();
        return Emit(isLast);
    }

    private void FillInOrder()
    {
        for (var i = 0; i < _items.Count; i++)
        {
            if (_packs.Count == 0 || _packs[^1].Room < _items[i].Length) _packs.Add(new Pack(capacity));
            Put(_packs.Count - 1, i);
        }
    }

    private void FillBestFirst()
    {
        // Keys are length descending, then place ascending; a whole sort of the window in one array of longs.
        var keys = new long[_items.Count];
        for (var i = 0; i < keys.Length; i++) keys[i] = ((long)(capacity - _items[i].Length) << 32) | (uint)i;
        Array.Sort(keys);
        _rooms.Clear();
        foreach (var key in keys)
        {
            var item = (int)(key & uint.MaxValue);
            var pack = _rooms.TakeSmallest(_items[item].Length);
            if (pack < 0)
            {
                pack = _packs.Count;
                _packs.Add(new Pack(capacity));
            }
            Put(pack, item);
            if (_packs[pack].Room > 0) _rooms.Add(_packs[pack].Room, pack);
        }
    }

    private void Put(int pack, int item)
    {
        _packs[pack].Items.Add(item);
        CollectionsMarshal.AsSpan(_packs)[pack].Room -= _items[item].Length;
    }

    private List<int[]> Emit(bool isLast)
    {
        var finished = new List<(int First, int[] Samples)>(_packs.Count);
        var kept = new List<int>();
        for (var p = 0; p < _packs.Count; p++)
        {
            var pack = _packs[p];
            pack.Items.Sort();
            if (!isLast && IsKept(pack, isLastPack: p == _packs.Count - 1)) kept.AddRange(pack.Items);
            else finished.Add((pack.Items[0], pack.Items.ConvertAll(item => _items[item].Sample).ToArray()));
        }
        kept.Sort();
        var carried = kept.ConvertAll(item => _items[item] with { NumWaits = _items[item].NumWaits + 1 });
        _items.Clear();
        _items.AddRange(carried);
        finished.Sort((left, right) => left.First.CompareTo(right.First));
        return finished.ConvertAll(pack => pack.Samples);
    }

    private bool IsKept(Pack pack, bool isLastPack)
    {
        if (strategy == PackingStrategy.Sequential) return isLastPack;
        return pack.Room > capacity * (1 - GoodFill) && pack.Items.TrueForAll(item => _items[item].NumWaits < MaxWaits);
    }

    private struct Pack(int room)
    {
        public int Room = room;
        public readonly List<int> Items = [];
    }

    /// <summary>Packs by the room they have left: finds the smallest room of at least n in a few steps, over a tree of bit sets.</summary>
    private sealed class RoomIndex
    {
        private readonly Queue<int>?[] _packs;
        private readonly ulong[][] _levels;

        public RoomIndex(int capacity)
        {
            _packs = new Queue<int>?[capacity + 1];
            var levels = new List<ulong[]>();
            for (var size = capacity + 1; levels.Count == 0 || levels[^1].Length > 1; size = levels[^1].Length) levels.Add(new ulong[(size + 63) / 64]);
            _levels = [.. levels];
        }

        public void Clear()
        {
            for (var room = Find(0); room >= 0; room = Find(room))
            {
                _packs[room]?.Clear();
                Unmark(room);
            }
        }

        public void Add(int room, int pack)
        {
            (_packs[room] ??= new Queue<int>()).Enqueue(pack);
            foreach (var level in _levels)
            {
                level[room >> 6] |= 1UL << (room & 63);
                room >>= 6;
            }
        }

        /// <summary>Takes the oldest pack of the smallest room ≥ <paramref name="least"/>; −1 when there is none.</summary>
        public int TakeSmallest(int least)
        {
            var room = Find(least);
            if (room < 0 || _packs[room] is not { } queue) return -1;
            var pack = queue.Dequeue();
            if (queue.Count == 0) Unmark(room);
            return pack;
        }

        private void Unmark(int room)
        {
            foreach (var level in _levels)
            {
                level[room >> 6] &= ~(1UL << (room & 63));
                if (level[room >> 6] != 0) return;
                room >>= 6;
            }
        }

        private int Find(int least)
        {
            // Up until a word has a bit at or after the place, then down to its first bit.
            for (var (height, at) = (0, least); height < _levels.Length; height++, at = (at >> 6) + 1)
            {
                if (at >> 6 >= _levels[height].Length) return -1;
                var word = _levels[height][at >> 6] & (ulong.MaxValue << (at & 63));
                if (word == 0) continue;
                at = (at & ~63) + BitOperations.TrailingZeroCount(word);
                while (height-- > 0) at = (at << 6) + BitOperations.TrailingZeroCount(_levels[height][at]);
                return at;
            }
            return -1;
        }
    }
}
