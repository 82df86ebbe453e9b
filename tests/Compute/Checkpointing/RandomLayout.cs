using Megatron.Compute.Checkpointing;

namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>Random ways to cut a tensor: a grid of blocks (TP, EP), each block cut into flat ranges (ZeRO-1).</summary>
internal static class RandomLayout
{
    /// <summary>A shape of up to four dimensions, small enough to enumerate.</summary>
    public static long[] Shape(Random random) => [.. Enumerable.Range(0, random.Next(0, 5)).Select(_ => (long)random.Next(1, 7))];

    /// <summary>Ranges that hold every element once, in random order.</summary>
    public static List<BlockRange> Cut(long[] shape, Random random)
    {
        var blocks = new List<(long[] Offset, long[] Extent)> { (new long[shape.Length], shape) };
        for (var dimension = 0; dimension < shape.Length; dimension++)
        {
            var points = Points(shape[dimension], random.Next(3) == 0 ? random.Next(1, 4) : 1, random);
            blocks = [.. blocks.SelectMany(block => points.Zip(points.Skip(1), (first, last) => (With(block.Offset, dimension, first), With(block.Extent, dimension, last - first))))];
        }
        var ranges = new List<BlockRange>();
        foreach (var (offset, extent) in blocks)
        {
            var size = extent.Aggregate(1L, (product, length) => product * length);
            var points = Points(size, random.Next(1, 5), random);
            ranges.AddRange(points.Zip(points.Skip(1), (first, last) => new BlockRange(offset, extent, first, last)));
        }
        return [.. ranges.OrderBy(_ => random.Next())];
    }

    /// <summary>The tensor's flat index of every element of a range, found by counting coordinates.</summary>
    public static List<long> Enumerate(BlockRange range, long[] shape)
    {
        var indices = new List<long>();
        for (var element = range.Begin; element < range.End; element++)
        {
            var (rest, index, stride) = (element, 0L, 1L);
            for (var dimension = shape.Length - 1; dimension >= 0; dimension--)
            {
                index += (rest % range.Shape[dimension] + range.Offset[dimension]) * stride;
                rest /= range.Shape[dimension];
                stride *= shape[dimension];
            }
            indices.Add(index);
        }
        return indices;
    }

    private static List<long> Points(long length, int pieces, Random random) =>
        [0, .. Enumerable.Range(1, pieces - 1).Select(_ => random.NextInt64(0, length + 1)).Where(point => point > 0 && point < length).Distinct().Order(), length];

    private static long[] With(long[] values, int index, long value)
    {
        var result = (long[])values.Clone();
        result[index] = value;
        return result;
    }
}
