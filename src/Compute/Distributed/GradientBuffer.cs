using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>One parameter's place in a <see cref="GradientBuffer"/>.</summary>
public sealed class GradientSlot
{
    private readonly bool[] isEmpty; // by logical shard: what the view holds is of an earlier step
    private Tensor view;
    private int shard;

    /// <summary>First element in the flat buffer.</summary>
    public long Offset { get; }

    /// <summary>Shape of the parameter.</summary>
    public long[] Shape { get; }

    /// <summary>Elements.</summary>
    public long NumElements { get; }

    /// <summary>
    /// fp32 view of the accumulator in use, in the parameter's shape; zeros when nothing was added since <see cref="GradientBuffer.Zero"/>. It
    /// changes with <see cref="GradientBuffer.SelectShard"/>, so read it anew for every BackwardWeight and never dispose it.
    /// </summary>
    public Tensor Tensor
    {
        get
        {
            Fill();
            return view;
        }
    }

    /// <summary>Called when a micro-batch's backward has added all that it adds here; null when nobody wants to know.</summary>
    public Action? Completed { get; set; }

    /// <summary>A slot; the buffer makes its own, others are for a gradient that stands alone.</summary>
    public GradientSlot(long offset, long[] shape, Tensor tensor) : this(offset, shape, tensor, numLogicalShards: 1) { }

    internal GradientSlot(long offset, long[] shape, Tensor tensor, int numLogicalShards)
    {
        (Offset, Shape, view, isEmpty) = (offset, shape, tensor, new bool[numLogicalShards]);
        NumElements = shape.Aggregate(1L, (product, extent) => product * extent);
    }

    /// <summary>
    /// The view for one who is about to write all of it, and whether what it holds counts: when not, he overwrites instead of adding, which saves
    /// the fill and a read.
    /// </summary>
    public (Tensor View, bool IsEmpty) TakeForWriting()
    {
        var wasEmpty = isEmpty[shard];
        isEmpty[shard] = false;
        return (view, wasEmpty);
    }

    /// <summary>Writes the zeros that an empty view stands for.</summary>
    internal void Fill()
    {
        if (!isEmpty[shard]) return;
        isEmpty[shard] = false;
        using var scope = NewDisposeScope(); // TorchSharp's zero_ returns a second handle
        view.zero_();
    }

    internal void MarkEmpty() => Array.Fill(isEmpty, true);

    internal void Select(int newShard, Tensor newView) => (shard, view) = (newShard, newView);
}

/// <summary>
/// The fp32 main gradients of one rank: one flat buffer per logical data shard, all parameters of a group one after another. Weight
/// gradients are added into views of it; data-parallel reduction, the norm and the optimizer work on the flat form.
/// </summary>
/// <remarks>
/// Logical data shards (DESIGN D12): with N &gt; 1 each micro-batch belongs to shard (index mod N of the global batch's order) and
/// <see cref="ReduceShards"/> adds the accumulators in a fixed binary tree, so that the bits of the sum depend on N but not on how many
/// ranks share the work. N = 1 costs nothing; each further shard costs 4 bytes per parameter.
/// </remarks>
public sealed class GradientBuffer : IDisposable
{
    private readonly Tensor[] shards;
    private readonly Tensor[][] views;
    private int currentShard;

    /// <summary>Slots in the order of the constructor's shapes.</summary>
    public IReadOnlyList<GradientSlot> Slots { get; }

    /// <summary>Elements of the flat buffer, padding included: a multiple of the alignment.</summary>
    public long NumElements { get; }

    /// <summary>Number of accumulators.</summary>
    public int NumLogicalShards => shards.Length;

    /// <summary>[NumElements] fp32; the sum of the micro-batches of shard 0, and after <see cref="ReduceShards"/> of all shards.</summary>
    public Tensor Flat
    {
        get
        {
            foreach (var slot in Slots) slot.Fill();
            return shards[0];
        }
    }

    /// <param name="places">Where each parameter lies, ascending and without overlap; gaps stay zero.</param>
    /// <param name="numElements">Flat length.</param>
    /// <param name="device">Where the buffer lives.</param>
    /// <param name="numLogicalShards">Accumulators, at least 1.</param>
    public GradientBuffer(IReadOnlyList<GradientPlace> places, long numElements, Device device, int numLogicalShards)
    {
        if (numLogicalShards < 1) throw new ArgumentOutOfRangeException(nameof(numLogicalShards), $"{numLogicalShards} logical shards; at least 1 is needed.");
        CheckPlaces(places, numElements);
        NumElements = numElements;
        shards = [.. Enumerable.Range(0, numLogicalShards).Select(_ => zeros(NumElements, dtype: float32, device: device).DetachFromDisposeScope())];
        views = [.. shards.Select(flat => MakeViews(flat, places))];
        Slots = [.. places.Select((place, i) => new GradientSlot(place.Offset, place.Shape, views[0][i], numLogicalShards))];
    }

    /// <summary>Places the parameters one after another without gaps.</summary>
    /// <param name="shapes">Parameter shapes, in buffer order.</param>
    /// <param name="device">Where the buffer lives.</param>
    /// <param name="alignment">The flat length is rounded up to a multiple of this (the data-parallel size, so that it splits evenly).</param>
    /// <param name="numLogicalShards">Accumulators, at least 1.</param>
    public GradientBuffer(IReadOnlyList<long[]> shapes, Device device, long alignment, int numLogicalShards)
        : this(PackPlaces(shapes), RoundUp(shapes.Sum(CountElements), alignment), device, numLogicalShards) { }

    /// <summary>Points every slot at accumulator <paramref name="shard"/>; called before a micro-batch's backward.</summary>
    public void SelectShard(int shard)
    {
        if (shard == currentShard) return;
        currentShard = shard;
        for (var i = 0; i < Slots.Count; i++) Slots[i].Select(shard, views[shard][i]);
    }

    /// <summary>Adds the accumulators in a fixed binary tree into <see cref="Flat"/> and selects shard 0.</summary>
    public void ReduceShards()
    {
        for (var shard = 0; shard < shards.Length; shard++)
        {
            SelectShard(shard);
            foreach (var slot in Slots) slot.Fill();
        }
        using var scope = NewDisposeScope();
        for (var stride = 1; stride < shards.Length; stride *= 2)
            for (var left = 0; left + stride < shards.Length; left += 2 * stride)
                shards[left].add_(shards[left + stride]);
        SelectShard(0);
    }

    /// <summary>A view of a stretch of <see cref="Flat"/>, in the caller's dispose scope. Slots outside it are left alone.</summary>
    public Tensor Slice(long begin, long length)
    {
        foreach (var slot in Slots)
            if (slot.Offset < begin + length && slot.Offset + slot.NumElements > begin) slot.Fill();
        return shards[0].narrow(0, begin, length);
    }

    /// <summary>All accumulators count as zero, and shard 0 is selected. The zeros are written only where nobody overwrites them.</summary>
    public void Zero()
    {
        foreach (var slot in Slots) slot.MarkEmpty();
        SelectShard(0);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var list in views) foreach (var view in list) view.Dispose();
        foreach (var shard in shards) shard.Dispose();
    }

    private static Tensor[] MakeViews(Tensor flat, IReadOnlyList<GradientPlace> places)
    {
        var result = new Tensor[places.Count];
        for (var i = 0; i < places.Count; i++)
        {
            using var range = flat.narrow(0, places[i].Offset, CountElements(places[i].Shape));
            result[i] = range.view(places[i].Shape).DetachFromDisposeScope();
        }
        return result;
    }

    private static void CheckPlaces(IReadOnlyList<GradientPlace> places, long numElements)
    {
        var end = 0L;
        foreach (var place in places)
        {
            if (place.Offset < end) throw new ArgumentException($"A parameter starts at {place.Offset}, before the end {end} of the one before it.");
            end = place.Offset + CountElements(place.Shape);
        }
        if (end > numElements) throw new ArgumentException($"The parameters end at {end}, beyond the {numElements} elements of the buffer.");
    }

    private static GradientPlace[] PackPlaces(IReadOnlyList<long[]> shapes)
    {
        var places = new GradientPlace[shapes.Count];
        var offset = 0L;
        for (var i = 0; i < shapes.Count; i++)
        {
            places[i] = new GradientPlace(offset, shapes[i]);
            offset += CountElements(shapes[i]);
        }
        return places;
    }

    private static long CountElements(long[] shape) => shape.Aggregate(1L, (product, extent) => product * extent);

    private static long RoundUp(long value, long multiple) => (value + multiple - 1) / multiple * multiple;
}

/// <summary>Where a parameter of the given shape starts in a flat buffer.</summary>
public readonly record struct GradientPlace(long Offset, long[] Shape);
