using System.Collections.Concurrent;
using System.Text;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909; on bytes: GPT-2): starts from single bytes and merges the neighbouring
/// pair of the lowest rank, leftmost first, until none can be merged. Thread-safe.
/// </summary>
internal sealed class BytePairModel
{
    /// <summary>Up to this many symbols a plain scan for the best pair beats a heap.</summary>
    private const int MaxScannedSymbols = 48;

    private const int MaxCachedChars = 48;
    private const int MaxCachedWords = 1 << 16;

    private readonly IReadOnlyDictionary<string, int> _vocabulary;
    private readonly MergeTable _merges;
    private readonly bool _ignoreMerges;
    private readonly int[] _idOfByte = new int[256];
    private readonly ConcurrentBag<Workspace> _workspaces = [];

    /// <param name="vocabulary">Token to id; tokens in the letters of <see cref="ByteAlphabet"/>.</param>
    /// <param name="merges">What each pair of ids becomes.</param>
    /// <param name="ignoreMerges">Whether a piece that is a token as a whole is taken without merging.</param>
    public BytePairModel(IReadOnlyDictionary<string, int> vocabulary, MergeTable merges, bool ignoreMerges)
    {
        _vocabulary = vocabulary;
        _merges = merges;
        _ignoreMerges = ignoreMerges;
        for (var value = 0; value < 256; value++)
            _idOfByte[value] = vocabulary.TryGetValue(ByteAlphabet.ToChar((byte)value).ToString(), out var id) ? id : -1;
    }

    /// <summary>
    /// Whether every byte that UTF-8 uses (not C0, C1, F5 and up) has a token. Like the reference library, encoding leaves out those
    /// without.
    /// </summary>
    public bool CoversUtf8 => Enumerable.Range(0, 0xF5).All(value => value is 0xC0 or 0xC1 || _idOfByte[value] >= 0);

    /// <summary>Memory for encoding; one thread at a time. Give it back with <see cref="Return"/>.</summary>
    public Workspace Rent() => _workspaces.TryTake(out var workspace) ? workspace : new Workspace();

    /// <summary>Takes back a workspace and the words it has learned.</summary>
    public void Return(Workspace workspace) => _workspaces.Add(workspace);

    /// <summary>Appends the ids of one piece to <see cref="Workspace.Ids"/>.</summary>
    public void Encode(ReadOnlySpan<char> piece, Workspace workspace)
    {
        if (piece.Length > MaxCachedChars)
        {
            workspace.Ids.AddRange(Merged(piece, workspace));
            return;
        }

        var lookup = workspace.Lookup;
        if (!lookup.TryGetValue(piece, out var ids))
        {
            ids = Merged(piece, workspace).ToArray();
            if (workspace.Words.Count >= MaxCachedWords)
                workspace.Words.Clear();
            lookup[piece] = ids;
        }

        if (ids.Length == 1)
            workspace.Ids.Add(ids[0]);
        else
            workspace.Ids.AddRange(ids);
    }

    private ReadOnlySpan<int> Merged(ReadOnlySpan<char> piece, Workspace workspace)
    {
        var numBytesMax = Encoding.UTF8.GetMaxByteCount(piece.Length);
        workspace.Reserve(numBytesMax);
        var bytes = workspace.Bytes.AsSpan(0, Encoding.UTF8.GetBytes(piece, workspace.Bytes));
        if (_ignoreMerges && WholeToken(bytes) is int whole)
        {
            workspace.Symbols[0] = whole;
            return workspace.Symbols.AsSpan(0, 1);
        }

        var symbols = workspace.Symbols;
        var count = 0;
        foreach (var value in bytes)
        {
            if (_idOfByte[value] >= 0)
                symbols[count++] = _idOfByte[value];
        }

        count = count <= MaxScannedSymbols ? MergeByScan(symbols, count) : MergeByHeap(symbols, count);
        return symbols.AsSpan(0, count);
    }

    private int? WholeToken(ReadOnlySpan<byte> bytes)
    {
        var letters = string.Create(bytes.Length, bytes, static (chars, source) =>
        {
            for (var i = 0; i < source.Length; i++)
                chars[i] = ByteAlphabet.ToChar(source[i]);
        });
        return _vocabulary.TryGetValue(letters, out var id) ? id : null;
    }

    /// <summary>Merges in place and returns the number of symbols left.</summary>
    internal int MergeByScan(int[] symbols, int count)
    {
        Span<Merge> merges = stackalloc Merge[MaxScannedSymbols + 1];
        for (var i = 0; i + 1 < count; i++)
            merges[i] = _merges[symbols[i], symbols[i + 1]];
        while (count > 1)
        {
            var best = 0;
            for (var i = 1; i + 1 < count; i++)
            {
                if (merges[i].Rank < merges[best].Rank)
                    best = i;
            }

            if (merges[best].Rank == int.MaxValue)
                break;
            symbols[best] = merges[best].Id;
            count--;
            for (var i = best + 1; i < count; i++)
            {
                symbols[i] = symbols[i + 1];
                merges[i] = merges[i + 1];
            }

            if (best + 1 < count)
                merges[best] = _merges[symbols[best], symbols[best + 1]];
            if (best > 0)
                merges[best - 1] = _merges[symbols[best - 1], symbols[best]];
        }

        return count;
    }

    /// <summary>As <see cref="MergeByScan"/> in O(n log n): a linked list of symbols and a heap of pairs, outdated pairs skipped.</summary>
    internal int MergeByHeap(int[] symbols, int count)
    {
        var next = new int[count];
        var previous = new int[count];
        var heap = new PriorityQueue<(int Left, int LeftId, int RightId, int Id), long>(count);
        for (var i = 0; i < count; i++)
        {
            next[i] = i + 1;
            previous[i] = i - 1;
        }

        for (var i = 0; i + 1 < count; i++)
            Push(i, i + 1);

        while (heap.TryDequeue(out var pair, out _))
        {
            var left = pair.Left;
            var right = next[left];
            if (symbols[left] != pair.LeftId || right >= count || symbols[right] != pair.RightId)
                continue;
            symbols[left] = pair.Id;
            symbols[right] = -1;
            next[left] = next[right];
            if (next[left] < count)
            {
                previous[next[left]] = left;
                Push(left, next[left]);
            }

            if (previous[left] >= 0)
                Push(previous[left], left);
        }

        var kept = 0;
        for (var i = 0; i < count; i = next[i])
            symbols[kept++] = symbols[i];
        return kept;

        void Push(int left, int right)
        {
            var merge = _merges[symbols[left], symbols[right]];
            if (merge.Rank != int.MaxValue)
                heap.Enqueue((left, symbols[left], symbols[right], merge.Id), ((long)merge.Rank << 32) | (uint)left);
        }
    }

    /// <summary>Buffers and a cache of words for one encoding at a time.</summary>
    internal sealed class Workspace
    {
        public Workspace() => Lookup = Words.GetAlternateLookup<ReadOnlySpan<char>>();

        /// <summary>Output.</summary>
        public List<int> Ids { get; } = [];

        public Dictionary<string, int[]> Words { get; } = [];

        public Dictionary<string, int[]>.AlternateLookup<ReadOnlySpan<char>> Lookup { get; }

        public byte[] Bytes { get; private set; } = new byte[256];

        public int[] Symbols { get; private set; } = new int[256];

        public void Reserve(int numBytes)
        {
            if (numBytes <= Bytes.Length)
                return;
            Bytes = new byte[numBytes];
            Symbols = new int[numBytes];
        }
    }
}
