using Megatron.Compute.Checkpointing;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class BlockRangeTests
{
    [Fact]
    public void Intersect_RandomLayouts_MatchesDenseOracle()
    {
        var seed = Environment.TickCount;
        TestContext.Current.TestOutputHelper?.WriteLine($"seed {seed}");
        var random = new Random(seed);
        var runs = 0L;
        for (var round = 0; round < 1500; round++)
        {
            var shape = RandomLayout.Shape(random);
            var sources = RandomLayout.Cut(shape, random);
            foreach (var destination in RandomLayout.Cut(shape, random))
            {
                var expected = RandomLayout.Enumerate(destination, shape);
                var actual = Enumerable.Repeat(-1L, expected.Count).ToArray();
                foreach (var source in sources)
                {
                    var values = RandomLayout.Enumerate(source, shape);
                    foreach (var run in source.Intersect(destination))
                    {
                        runs++;
                        for (var i = 0; i < run.Count; i++)
                        {
                            Assert.Equal(-1, actual[run.Destination + i]);
                            actual[run.Destination + i] = values[(int)(run.Source + i)];
                        }
                    }
                }
                Assert.True(expected.SequenceEqual(actual), $"seed {seed}, round {round}, shape [{string.Join(", ", shape)}]");
            }
            Assert.Null(SliceCover.Problem(shape, sources));
        }
        TestContext.Current.TestOutputHelper?.WriteLine($"{runs} runs");
    }

    [Fact]
    public void Boxes_AnyRange_AtMostTwiceTheDimensions()
    {
        var random = new Random(7);
        for (var round = 0; round < 2000; round++)
        {
            var shape = RandomLayout.Shape(random);
            foreach (var range in RandomLayout.Cut(shape, random))
                Assert.True(range.Boxes().Count <= Math.Max(1, 2 * shape.Length - 1));
        }
    }

    [Fact]
    public void Intersect_SameBlock_IsOneRun()
    {
        var run = Assert.Single(new BlockRange([2, 0], [4, 8], 0, 32).Intersect(new BlockRange([2, 0], [4, 8], 0, 32)));
        Assert.Equal(new CopyRun(0, 0, 32), run);
        run = Assert.Single(BlockRange.WholeTensor([8, 8]).Intersect(BlockRange.Whole([2, 0], [4, 8])));
        Assert.Equal(new CopyRun(16, 0, 32), run);
        Assert.Equal(8, BlockRange.WholeTensor([8, 8]).Intersect(BlockRange.Whole([0, 4], [8, 4])).Count());
    }

    [Fact]
    public void Problem_MissingDoubledAndOverlappingSlices_AreFound()
    {
        static string Problem(params BlockRange[] slices) => SliceCover.Problem([4, 4], slices) ?? "none";
        Assert.Equal("none", Problem(BlockRange.WholeTensor([4, 4])));
        Assert.Equal("none", Problem(BlockRange.Whole([0, 0], [4, 2]), new([0, 2], [4, 2], 3, 8), new([0, 2], [4, 2], 0, 3), new([0, 2], [4, 2], 3, 3)));
        Assert.Contains("0 of 16", Problem());
        Assert.Contains("no slice with element 3", Problem(new BlockRange([0, 0], [4, 4], 0, 3), new([0, 0], [4, 4], 4, 16)));
        Assert.Contains("two slices with element 2", Problem(new BlockRange([0, 0], [4, 4], 0, 3), new([0, 0], [4, 4], 2, 16)));
        Assert.Contains("no slice with element 15", Problem(new BlockRange([0, 0], [4, 4], 0, 15)));
        Assert.Contains("8 of 16", Problem(BlockRange.Whole([0, 0], [4, 2])));
        Assert.Contains("overlap", Problem(BlockRange.Whole([0, 0], [2, 4]), BlockRange.Whole([1, 0], [2, 4])));
    }
}
