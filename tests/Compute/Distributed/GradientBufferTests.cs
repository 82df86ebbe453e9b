using Megatron.Compute.Distributed;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Distributed;

public sealed class GradientBufferTests
{
    [Theory]
    [InlineData(1, 16)]
    [InlineData(4, 16)]
    [InlineData(5, 20)]
    [InlineData(32, 32)]
    public void Constructor_Shapes_RoundsLengthUpToAlignment(long alignment, long expected)
    {
        using var leaks = LeakCheck.Start();
        using var buffer = new GradientBuffer([[2, 3], [10]], CPU, alignment, 1);
        Assert.Equal(expected, buffer.NumElements);
        Assert.Equal([0L, 6L], buffer.Slots.Select(slot => slot.Offset));
        Assert.Equal([2L, 3L], buffer.Slots[0].Tensor.shape);
    }

    [Fact]
    public void Slots_Written_ShowInFlatAtTheirPlace()
    {
        using var leaks = LeakCheck.Start();
        using var buffer = new GradientBuffer([new GradientPlace(0, [3]), new GradientPlace(8, [2, 2])], 16, CPU, 1);
        buffer.Slots[0].Tensor.fill_(1);
        buffer.Slots[1].Tensor.fill_(2);
        Assert.Equal([1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0], buffer.Flat.data<float>().ToArray());
        buffer.Zero();
        Assert.All(buffer.Flat.data<float>().ToArray(), value => Assert.Equal(0f, value));
    }

    [Theory]
    [InlineData(2, 16)] // overlaps the first
    [InlineData(13, 16)] // ends beyond the buffer
    public void Constructor_BadPlace_Throws(long offset, long numElements) => Assert.Throws<ArgumentException>(
        () => new GradientBuffer([new GradientPlace(0, [3]), new GradientPlace(offset, [4])], numElements, CPU, 1));

    [Fact]
    public void Constructor_NoShard_Throws() => Assert.Throws<ArgumentOutOfRangeException>(() => new GradientBuffer([[1L]], CPU, 1, 0));

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(7)]
    [InlineData(8)]
    public void ReduceShards_AnyNumber_AddsInOneBinaryTree(int numShards)
    {
        using var leaks = LeakCheck.Start();
        using var buffer = new GradientBuffer([[64L]], CPU, 1, numShards);
        var random = new Random(numShards);
        var shards = new float[numShards][];
        for (var shard = numShards - 1; shard >= 0; shard--) // the order of filling must not matter
        {
            shards[shard] = [.. Enumerable.Range(0, 64).Select(_ => (float)(random.NextDouble() - 0.5) * (1 << random.Next(20)))];
            buffer.SelectShard(shard);
            using var values = tensor(shards[shard]);
            buffer.Slots[0].Tensor.add_(values);
        }
        buffer.ReduceShards();
        Assert.Equal([.. Enumerable.Range(0, 64).Select(i => TreeSum(shards, i, 0, RoundUpToPower(numShards)))], buffer.Flat.data<float>().ToArray());
        buffer.Slots[0].Tensor.fill_(3); // shard 0 is selected again
        Assert.All(buffer.Flat.data<float>().ToArray(), value => Assert.Equal(3f, value));
    }

    /// <summary>Sum of shards [begin, begin + width) by halves, in fp32; shards beyond the last are absent.</summary>
    private static float TreeSum(float[][] shards, int element, int begin, int width)
    {
        if (width == 1) return shards[begin][element];
        var left = TreeSum(shards, element, begin, width / 2);
        return begin + width / 2 < shards.Length ? left + TreeSum(shards, element, begin + width / 2, width / 2) : left;
    }

    private static int RoundUpToPower(int value) => (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)value);
}
