using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// Which part of a pair (this rank's queries, one rank's keys) causal attention needs. Both hold two chunks of each segment in zig-zag
/// order, so a pair of different ranks needs exactly half of its scores, and none of those is masked.
/// </summary>
internal enum RingPart
{
    /// <summary>The rank's own keys: all with all, causal; zig-zag order is rising, so the mask is the ordinary one.</summary>
    Own,

    /// <summary>Keys of a lower rank: their first chunk lies before both of ours, their second behind both. All queries, first half of the keys.</summary>
    FirstKeys,

    /// <summary>Keys of a higher rank: both chunks lie between ours. Second half of the queries, all keys.</summary>
    LastQueries,
}

/// <summary>One block of the ring for one group of equally long segments: which of its queries meet which keys.</summary>
/// <param name="Group">Segments in this rank's row; 2 chunks each.</param>
/// <param name="Part">What of them is computed.</param>
/// <param name="Source">Rank whose keys these are.</param>
/// <param name="NumRanks">cp.</param>
internal readonly record struct RingBlock(SegmentGroup Group, RingPart Part, int Source, int NumRanks)
{
    private int Chunk => Group.SeqLen / 2;

    /// <summary>Tokens of each local segment that are queries.</summary>
    public PositionRange Queries => Part == RingPart.LastQueries ? new PositionRange(Chunk, Chunk) : new PositionRange(0, Group.SeqLen);

    /// <summary>Tokens of each local segment that are keys.</summary>
    public PositionRange Keys => Part == RingPart.FirstKeys ? new PositionRange(0, Chunk) : new PositionRange(0, Group.SeqLen);

    /// <summary>Where the keys stand in their sample.</summary>
    public PositionRange[] KeyPositions
    {
        get
        {
            var first = new PositionRange(Source * Chunk, Chunk);
            return Part == RingPart.FirstKeys ? [first] : [first, new PositionRange((2 * NumRanks - 1 - Source) * Chunk, Chunk)];
        }
    }

    /// <summary>[T, …] as the block's queries [B, S, …], a view.</summary>
    public Tensor QueryRows(Tensor x) => Rows(x, Queries);

    /// <summary>[T, …] as the block's keys [B, S, …], a view.</summary>
    public Tensor KeyRows(Tensor x) => Rows(x, Keys);

    private Tensor Rows(Tensor x, PositionRange range)
    {
        var segments = x.narrow(0, Group.Start, Group.NumTokens).view([Group.BatchSize, Group.SeqLen, .. x.shape[1..]]);
        return range.Length == Group.SeqLen ? segments : segments.narrow(1, range.Start, range.Length);
    }
}
