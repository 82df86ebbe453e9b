namespace Megatron.Compute.Data;

/// <summary>
/// The zig-zag split of a row over the ranks of a context-parallel group (numerics 3.12): each segment is cut into 2·cp chunks of equal
/// length and rank r holds chunks r and 2·cp − 1 − r of every segment, so that causal attention costs every rank the same. Labels, weights,
/// positions and token numbers move with their tokens; labels were shifted before, so no target is lost at a border. Pure.
/// </summary>
/// <param name="Rank">This rank's index in the group.</param>
/// <param name="Size">Ranks of the group; 1 splits nothing.</param>
public sealed record ContextSplit(int Rank, int Size)
{
    /// <summary>This rank's part of a row: T / cp tokens, the segments still one after another, padding still at the end of each.</summary>
    /// <exception cref="InvalidOperationException">A segment is no multiple of 2·cp tokens: the row was not padded for this group.</exception>
    public MicroBatch Take(MicroBatch whole)
    {
        if (Size == 1) return whole;
        var rows = RowsOf(whole, Rank);
        var labels = Pick(whole.Labels, rows);
        return whole with
        {
            TokenIds = Pick(whole.TokenIds, rows),
            Labels = labels,
            LossWeights = whole.LossWeights is { } weights ? Pick(weights, rows) : null,
            Positions = Pick(whole.Positions, rows),
            CuSeqLens = Array.ConvertAll(whole.CuSeqLens, border => border / Size),
            NumPaddingTokens = whole.NumPaddingTokens / Size,
            SegmentPadding = whole.SegmentPadding is null ? null : LocalPadding(whole, whole.SegmentPadding),
            GlobalTokenIndex = Pick(whole.GlobalTokenIndex, rows),
            NumTargetTokens = labels.Count(label => label != MicroBatch.IgnoreIndex),
        };
    }

    /// <summary>[T / cp] index in the whole row of each token that rank <paramref name="rank"/> holds, in the order in which it holds them.</summary>
    /// <exception cref="InvalidOperationException">A segment is no multiple of 2·cp tokens.</exception>
    public int[] RowsOf(MicroBatch whole, int rank)
    {
        var rows = new int[whole.NumTokens / Size];
        var next = 0;
        for (var segment = 0; segment + 1 < whole.CuSeqLens.Length; segment++)
        {
            var (start, chunk) = (whole.CuSeqLens[segment], ChunkLength(whole, segment));
            foreach (var index in (ReadOnlySpan<int>)[rank, 2 * Size - 1 - rank])
                for (var i = 0; i < chunk; i++) rows[next++] = start + index * chunk + i;
        }
        return rows;
    }

    private int ChunkLength(MicroBatch whole, int segment)
    {
        var length = whole.CuSeqLens[segment + 1] - whole.CuSeqLens[segment];
        if (length % (2 * Size) == 0) return length / (2 * Size);
        throw new InvalidOperationException(
            $"Context-parallel rank {Rank} of {Size}: segment {segment} has {length} tokens, which do not cut into {2 * Size} chunks; pad samples to a multiple of {2 * Size}.");
    }

    /// <summary>Of each segment, the tokens of this rank's two chunks that lie behind the sample's last real token.</summary>
    private int[] LocalPadding(MicroBatch whole, int[] padding)
    {
        var local = new int[padding.Length];
        for (var segment = 0; segment < padding.Length; segment++)
        {
            var chunk = ChunkLength(whole, segment);
            var numReal = 2 * Size * chunk - padding[segment];
            foreach (var index in (ReadOnlySpan<int>)[Rank, 2 * Size - 1 - Rank])
                local[segment] += Math.Clamp((index + 1) * chunk - numReal, 0, chunk);
        }
        return local;
    }

    private static T[] Pick<T>(T[] values, int[] rows) => Array.ConvertAll(rows, row => values[row]);
}
