using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>The global L2 norm of the gradients, each element counted once however often it is replicated (numerics 3.7).</summary>
public static class GradientNorm
{
    /// <summary>Elements whose squares are summed in fp32 before fp64 takes over: keeps the relative error near 1e-7 for any model size.</summary>
    private const int RowLength = 4096;

    /// <summary>
    /// True when this rank adds the parameter to the norm: it is not a copy of a tied weight, and it is sharded over the tensor-parallel
    /// group or this is that group's first rank.
    /// </summary>
    public static bool IsCounted(ParameterTraits traits, ParallelState parallel)
    {
        if (traits.IsSharedDuplicate) return false;
        var tensorRank = traits.IsExpert ? parallel.ExpertTensorParallel.Rank : parallel.TensorParallel.Rank;
        return traits.IsTensorSharded || tensorRank == 0;
    }

    /// <summary>
    /// The ranges of the flat buffer whose squares this rank adds, ascending, neighbours merged. With a sharded optimizer each replica
    /// counts its shard; otherwise the first replica counts everything.
    /// </summary>
    public static IReadOnlyList<FlatRange> CountedRanges(FlatLayout layout, ParallelState parallel, bool isSharded)
    {
        var result = new List<FlatRange>();
        foreach (var bucket in layout.Buckets)
        {
            if (!isSharded && bucket.Replicas.Rank != 0) continue;
            var owned = bucket.OwnedRange(isSharded);
            var ofBucket = new List<FlatRange>(); // joined inside a bucket only: how long the gap behind it is depends on the replicas
            foreach (var entry in bucket.Entries)
                if (IsCounted(entry.Parameter.Traits, parallel)) Merge(ofBucket, entry.Range.Intersect(owned));
            result.AddRange(ofBucket);
        }
        return result;
    }

    /// <summary>
    /// Sum of squares of the given ranges of <paramref name="flat"/> (1-D, fp32 or a 16-bit type): fp32 inside rows, fp64 across them.
    /// </summary>
    /// <returns>0-d fp64 tensor on the same device, in the caller's dispose scope; not finite when an element is not.</returns>
    public static Tensor SumOfSquares(Tensor flat, IReadOnlyList<FlatRange> ranges)
    {
        if (GradientNormKernel.Supports(flat, ranges)) return GradientNormKernel.SumOfSquares(flat, ranges);
        using var scope = NewDisposeScope();
        var total = zeros(1, dtype: float64, device: flat.device);
        foreach (var range in ranges)
        {
            var numRows = range.Length / RowLength;
            if (numRows > 0) total.add_(SquaresOfRows(flat.narrow(0, range.Begin, numRows * RowLength).view(numRows, RowLength)));
            var rest = range.Length - numRows * RowLength;
            if (rest > 0) total.add_(SquaresOfRows(flat.narrow(0, range.End - rest, rest).view(1, rest)));
        }
        return total.view([]).MoveToOuterDisposeScope();
    }

    private static Tensor SquaresOfRows(Tensor rows) =>
        rows.to_type(float32).norm(dim: 1, keepdim: false, p: 2f).to_type(ScalarType.Float64).square().sum();

    private static void Merge(List<FlatRange> ranges, FlatRange range)
    {
        if (range.Length == 0) return;
        // Up to the next parameter's start there are only zeros, so ranges may be joined across the gap.
        if (ranges.Count > 0 && range.Begin - ranges[^1].End < FlatLayout.Alignment) ranges[^1] = ranges[^1] with { End = range.End };
        else ranges.Add(range);
    }
}
