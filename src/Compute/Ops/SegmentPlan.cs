using Megatron.Compute.Data;

namespace Megatron.Compute.Ops;

/// <summary>Cuts a packed row into groups that attention computes as one dense batch each.</summary>
public static class SegmentPlan
{
    /// <summary>Consecutive segments of equal length, in order; empty segments and the padding at the end are left out.</summary>
    public static SegmentGroup[] Make(MicroBatch batch)
    {
        var groups = new List<SegmentGroup>();
        var end = batch.NumTokens - batch.NumPaddingTokens;
        for (var i = 1; i < batch.CuSeqLens.Length; i++)
        {
            var (start, length) = (batch.CuSeqLens[i - 1], batch.CuSeqLens[i] - batch.CuSeqLens[i - 1]);
            if (length == 0 || start >= end) continue;
            if (groups.Count > 0 && groups[^1].SeqLen == length) groups[^1] = groups[^1] with { BatchSize = groups[^1].BatchSize + 1 };
            else groups.Add(new SegmentGroup(start, 1, length));
        }
        return [.. groups];
    }
}
