using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// Where each parameter lies in this rank's flat buffers (model weights, main gradients, masters, moments: all in one order), and how the
/// buffers are cut into buckets, the units of communication with the other replicas. First the dense parameters, then those of experts,
/// because they are reduced over different groups; inside each bucket first the decayed tensors, so that each optimizer group is one
/// contiguous range. A pure function of the parameter list, the bucket size and two group sizes.
/// </summary>
/// <remarks>
/// Every parameter starts at a multiple of <see cref="Alignment"/> elements (cuBLAS and vector loads want 16-byte starts in every dtype),
/// and each bucket's length is a multiple of alignment × replicas, so that it splits evenly among them. Gaps hold zeros. Which parameters
/// share a bucket does not depend on any group's size. A tied weight has a bucket of its own, so that its shards are the same elements on
/// the first and on the last stage.
/// </remarks>
public sealed class FlatLayout
{
    /// <summary>Elements to which parameter starts are rounded up.</summary>
    public const int Alignment = 64;

    /// <summary>Elements of a bucket unless <c>--ddp_bucket_size</c> says otherwise: Megatron's, 160 MB of gradients.</summary>
    public const long DefaultBucketElements = 40_000_000;

    /// <summary>Parameters in buffer order.</summary>
    public IReadOnlyList<FlatEntry> Entries { get; }

    /// <summary>In buffer order, one behind another: those of dense parameters, then those of experts.</summary>
    public IReadOnlyList<FlatBucket> Buckets { get; }

    /// <summary>Elements of each flat buffer, gaps included.</summary>
    public long NumElements { get; }

    private FlatLayout(IReadOnlyList<FlatBucket> buckets)
    {
        Buckets = buckets;
        Entries = [.. buckets.SelectMany(bucket => bucket.Entries)];
        NumElements = buckets.Count == 0 ? 0 : buckets[^1].Range.End;
    }

    /// <summary>Lays out <paramref name="parameters"/>; the given order, which is that of the forward, is kept inside each group of a bucket.</summary>
    /// <param name="bucketElements">A bucket is closed when it has so many elements; counted from the last parameter, whose gradient comes first.</param>
    public static FlatLayout Create(IReadOnlyList<Parameter> parameters, ParallelState parallel, long bucketElements = DefaultBucketElements)
    {
        var buckets = new List<FlatBucket>();
        var next = 0L;
        foreach (var isExpert in (bool[])[false, true])
        {
            var replicas = isExpert ? parallel.ExpertDataParallel : parallel.DataContextParallel;
            foreach (var members in Group([.. parameters.Where(parameter => parameter.Traits.IsExpert == isExpert)], bucketElements))
            {
                var entries = new List<FlatEntry>(members.Count);
                var endOfDecayed = Append(entries, members.Where(parameter => parameter.Traits.Decays), next);
                var endOfLast = Append(entries, members.Where(parameter => !parameter.Traits.Decays), endOfDecayed);
                var end = next + RoundUp(endOfLast - next, (long)Alignment * replicas.Size);
                buckets.Add(new FlatBucket(isExpert, new FlatRange(next, end), new FlatRange(next, endOfDecayed), replicas, entries));
                next = end;
            }
        }
        return new FlatLayout(buckets);
    }

    /// <summary>
    /// Allocates the fp32 main gradients in this layout, all zero, and points every parameter's <see cref="Parameter.GradientSlot"/> at its
    /// place.
    /// </summary>
    /// <param name="numLogicalShards">Accumulators (DESIGN D12), 1 unless <c>--logical_data_shards</c> asks for more.</param>
    public GradientBuffer CreateGradientBuffer(Device device, int numLogicalShards)
    {
        var places = Entries.Select(entry => new GradientPlace(entry.Range.Begin, entry.Parameter.Shape)).ToArray();
        var buffer = new GradientBuffer(places, NumElements, device, numLogicalShards);
        for (var i = 0; i < Entries.Count; i++) Entries[i].Parameter.GradientSlot = buffer.Slots[i];
        return buffer;
    }

    /// <summary>Consecutive parameters, in order; filled from the end.</summary>
    private static List<List<Parameter>> Group(Parameter[] parameters, long bucketElements)
    {
        var groups = new List<List<Parameter>>();
        var (numElements, isClosed) = (0L, true);
        for (var i = parameters.Length - 1; i >= 0; i--)
        {
            var isAlone = parameters[i].Traits.IsTied;
            if (isClosed || isAlone)
            {
                groups.Add([]);
                numElements = 0;
            }
            groups[^1].Add(parameters[i]);
            numElements += parameters[i].NumElements;
            isClosed = isAlone || numElements >= bucketElements;
        }
        foreach (var group in groups) group.Reverse();
        groups.Reverse();
        return groups;
    }

    private static long Append(List<FlatEntry> entries, IEnumerable<Parameter> parameters, long next)
    {
        foreach (var parameter in parameters)
        {
            entries.Add(new FlatEntry(parameter, new FlatRange(next, next + parameter.NumElements)));
            next = RoundUp(next + parameter.NumElements, Alignment);
        }
        return next;
    }

    private static long RoundUp(long value, long multiple) => (value + multiple - 1) / multiple * multiple;
}

/// <summary>One parameter's elements in the flat buffers.</summary>
public sealed record FlatEntry(Parameter Parameter, FlatRange Range);

/// <summary>A part of the flat buffers whose parameters are reduced together over the same ranks.</summary>
/// <param name="IsExpert">Holds expert parameters.</param>
/// <param name="Range">Elements of the bucket; its length is a multiple of the replicas.</param>
/// <param name="Decayed">Elements to which weight decay applies: the start of the bucket.</param>
/// <param name="Replicas">Ranks that hold the same parameters and reduce their gradients.</param>
/// <param name="Entries">Its parameters, ascending.</param>
public sealed record FlatBucket(bool IsExpert, FlatRange Range, FlatRange Decayed, ProcessGroup Replicas, IReadOnlyList<FlatEntry> Entries)
{
    /// <summary>The part that replica <paramref name="rank"/> updates when the optimizer is sharded (ZeRO-1, arXiv 1910.02054).</summary>
    public FlatRange ShardOf(int rank)
    {
        var length = Range.Length / Replicas.Size;
        return new FlatRange(Range.Begin + rank * length, Range.Begin + (rank + 1) * length);
    }

    /// <summary>The part that this rank updates: its shard, or all.</summary>
    public FlatRange OwnedRange(bool isSharded) => isSharded ? ShardOf(Replicas.Rank) : Range;
}
