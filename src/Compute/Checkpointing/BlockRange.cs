namespace Megatron.Compute.Checkpointing;

/// <summary>
/// A flat range inside a rectangular block of a tensor: elements [Begin, End) of the block in its own row-major order. Weights are whole
/// blocks, ZeRO-1 shards are arbitrary ranges (DESIGN D11). Two ranges of any layouts are matched by cutting both into boxes: a flat range
/// of a d-dimensional block is at most 2d - 1 boxes, and boxes intersect dimension by dimension.
/// </summary>
/// <param name="Offset">Start of the block in the tensor, per dimension.</param>
/// <param name="Shape">Extent of the block, per dimension.</param>
/// <param name="Begin">First element of the range.</param>
/// <param name="End">Element after the last.</param>
public sealed record BlockRange(long[] Offset, long[] Shape, long Begin, long End)
{
    /// <summary>Elements of the range.</summary>
    public long Count => End - Begin;

    /// <summary>A block from its first to its last element.</summary>
    public static BlockRange Whole(long[] offset, long[] shape) => new(offset, shape, 0, Product(shape, 0));

    /// <summary>A whole tensor.</summary>
    public static BlockRange WholeTensor(long[] shape) => Whole(new long[shape.Length], shape);

    /// <summary>
    /// The elements of the tensor that both ranges hold, as runs that are contiguous in both; within one pair of boxes in ascending order.
    /// </summary>
    public IEnumerable<CopyRun> Intersect(BlockRange destination)
    {
        var destinationBoxes = destination.Boxes();
        foreach (var box in Boxes())
            foreach (var other in destinationBoxes)
                if (box.TryIntersect(other, out var shared))
                    foreach (var run in Runs(shared, destination))
                        yield return run;
    }

    /// <summary>The range as disjoint boxes in tensor coordinates, in ascending order.</summary>
    internal List<Box> Boxes()
    {
        var boxes = new List<Box>();
        if (Count > 0) Cut(boxes, 0, Offset, Begin, End);
        return boxes;
    }

    /// <summary>
    /// Cuts [begin, end) of the sub-block whose coordinates before <paramref name="dimension"/> are fixed in <paramref name="origin"/>:
    /// a partial first row, whole rows, a partial last row.
    /// </summary>
    private void Cut(List<Box> boxes, int dimension, long[] origin, long begin, long end)
    {
        if (dimension == Shape.Length)
        {
            boxes.Add(Box.Make(origin, Shape, dimension, 0, 1));
            return;
        }
        var row = Product(Shape, dimension + 1);
        var (first, firstRest) = Math.DivRem(begin, row);
        var (last, lastRest) = Math.DivRem(end, row);
        if (first == last)
        {
            Cut(boxes, dimension + 1, Fixed(origin, dimension, first), firstRest, lastRest);
            return;
        }
        if (firstRest > 0) Cut(boxes, dimension + 1, Fixed(origin, dimension, first++), firstRest, row);
        if (first < last) boxes.Add(Box.Make(origin, Shape, dimension, first, last));
        if (lastRest > 0) Cut(boxes, dimension + 1, Fixed(origin, dimension, last), 0, lastRest);
    }

    private IEnumerable<CopyRun> Runs(Box box, BlockRange destination)
    {
        // Trailing dimensions that the box fills in both blocks are contiguous in both and join the run.
        var inner = Shape.Length - 1;
        while (inner > 0 && box.Extent[inner] == Shape[inner] && box.Extent[inner] == destination.Shape[inner]) inner--;
        var length = 1L;
        for (var dimension = Math.Max(inner, 0); dimension < Shape.Length; dimension++) length *= box.Extent[dimension];
        var position = (long[])box.Start.Clone();
        while (true)
        {
            yield return new CopyRun(FlatIndex(position) - Begin, destination.FlatIndex(position) - destination.Begin, length);
            var outer = inner - 1;
            while (outer >= 0 && ++position[outer] == box.Start[outer] + box.Extent[outer]) position[outer] = box.Start[outer--];
            if (outer < 0) yield break;
        }
    }

    private long FlatIndex(long[] position)
    {
        var index = 0L;
        for (var dimension = 0; dimension < Shape.Length; dimension++)
            index = index * Shape[dimension] + position[dimension] - Offset[dimension];
        return index;
    }

    private long[] Fixed(long[] origin, int dimension, long index)
    {
        var result = (long[])origin.Clone();
        result[dimension] = Offset[dimension] + index;
        return result;
    }

    private static long Product(long[] shape, int from)
    {
        var product = 1L;
        for (var dimension = from; dimension < shape.Length; dimension++) product *= shape[dimension];
        return product;
    }
}

/// <summary>An axis-aligned box of elements, in tensor coordinates.</summary>
internal sealed record Box(long[] Start, long[] Extent)
{
    /// <summary>
    /// The box of one index in each dimension before <paramref name="dimension"/>, rows [first, last) there, and all of the block's extent after it.
    /// </summary>
    public static Box Make(long[] origin, long[] blockShape, int dimension, long first, long last)
    {
        var start = (long[])origin.Clone();
        var extent = (long[])blockShape.Clone();
        for (var i = 0; i < dimension && i < extent.Length; i++) extent[i] = 1;
        if (dimension < extent.Length)
        {
            start[dimension] += first;
            extent[dimension] = last - first;
        }
        return new Box(start, extent);
    }

    /// <summary>The common box; false when there is none.</summary>
    public bool TryIntersect(Box other, out Box shared)
    {
        var start = new long[Start.Length];
        var extent = new long[Start.Length];
        shared = new Box(start, extent);
        for (var dimension = 0; dimension < start.Length; dimension++)
        {
            start[dimension] = Math.Max(Start[dimension], other.Start[dimension]);
            extent[dimension] = Math.Min(Start[dimension] + Extent[dimension], other.Start[dimension] + other.Extent[dimension]) - start[dimension];
            if (extent[dimension] <= 0) return false;
        }
        return true;
    }
}
