using System.Globalization;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Tells whether slices hold every element of a tensor exactly once. Saved layouts are grids: two slices lie in the same block or in blocks
/// that share nothing, so blocks must tile the tensor and ranges must tile each block.
/// </summary>
internal static class SliceCover
{
    // More ranks than any grid splits a tensor over; bounds the pairwise comparison of a hostile manifest.
    private const int BlocksMax = 4096;

    /// <summary>What is wrong, as the end of a sentence; null when nothing is.</summary>
    /// <param name="shape">Shape of the tensor.</param>
    /// <param name="slices">Slices that lie inside it.</param>
    public static string? Problem(long[] shape, IEnumerable<BlockRange> slices)
    {
        var blocks = new Dictionary<string, List<BlockRange>>(StringComparer.Ordinal);
        foreach (var slice in slices.Where(slice => slice.Count > 0))
        {
            var key = $"{string.Join(',', slice.Offset)}:{string.Join(',', slice.Shape)}";
            if (!blocks.TryGetValue(key, out var list)) blocks[key] = list = [];
            list.Add(slice);
        }
        if (blocks.Count > BlocksMax) return string.Create(CultureInfo.InvariantCulture, $"there are {blocks.Count} blocks, at most {BlocksMax} are possible");
        UInt128 total = 0;
        foreach (var ranges in blocks.Values)
        {
            if (RangeProblem(ranges) is { } problem) return problem;
            total += (ulong)ranges.Aggregate(0L, (sum, range) => sum + range.Count);
        }
        var expected = shape.Aggregate(1L, (product, extent) => product * extent);
        if (total != (ulong)expected) return string.Create(CultureInfo.InvariantCulture, $"they hold {total} of {expected} elements");
        return HaveOverlap([.. blocks.Values.Select(ranges => new Box(ranges[0].Offset, ranges[0].Shape))]) ? "two blocks overlap" : null;
    }

    private static string? RangeProblem(List<BlockRange> ranges)
    {
        var size = ranges[0].Shape.Aggregate(1L, (product, extent) => product * extent);
        var end = 0L;
        foreach (var range in ranges.OrderBy(range => range.Begin))
        {
            if (range.Begin != end) return string.Create(CultureInfo.InvariantCulture, $"a block has {(range.Begin < end ? "two slices with" : "no slice with")} element {Math.Min(range.Begin, end)}");
            end = range.End;
        }
        return end == size ? null : string.Create(CultureInfo.InvariantCulture, $"a block has no slice with element {end}");
    }

    private static bool HaveOverlap(List<Box> boxes)
    {
        for (var i = 0; i < boxes.Count; i++)
            for (var j = 0; j < i; j++)
                if (boxes[i].TryIntersect(boxes[j], out _)) return true;
        return false;
    }
}
