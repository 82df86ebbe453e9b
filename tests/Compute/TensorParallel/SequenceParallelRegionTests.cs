using Megatron.Compute.Distributed;
using Megatron.Compute.TensorParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.TensorParallel;

/// <summary>Products and collectives in chunks: the same results and bytes as in one piece, and one running beside the other.</summary>
public sealed class SequenceParallelRegionTests
{
    private const int LocalTokens = 7, Features = 6, Outputs = 10;

    [Theory]
    [InlineData(2, 3)]
    [InlineData(4, 4)]
    [InlineData(2, 16)]
    public void Chunks_AnyNumber_EqualOnePiece(int size, int numChunks)
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(size, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var group = world.Create("tp", rank, [.. Enumerable.Range(0, size)]);
            var (whole, chunked) = (new SequenceParallelRegion(group, true), new SequenceParallelRegion(group, true, numChunks));
            using var generator = new Generator((ulong)rank + 5);
            var x_tH = randn(LocalTokens, Features, generator: generator, dtype: float64);
            var y_TH = randn(size * LocalTokens, Features, generator: generator, dtype: float64);
            var weight_OH = randn(Outputs, Features, generator: generator, dtype: float64);
            Tensor Product(Tensor rows) => nn.functional.linear(rows, weight_OH);

            AssertClose(whole.GatherThen(x_tH, Product, out var gathered), chunked.GatherThen(x_tH, Product, out var gatheredInChunks));
            Assert.True(gathered.eq(gatheredInChunks).all().item<bool>());
            AssertClose(whole.GatherThen(x_tH, Product), chunked.GatherThen(x_tH, Product));
            AssertClose(whole.ThenReduce(y_TH, Product), chunked.ThenReduce(y_TH, Product));
            AssertClose(Sum(whole), Sum(chunked));
            var bytes = VolumeOf(group, () => Sum(whole));
            Assert.Equal((size - 1) * LocalTokens * Features * 8, bytes);
            Assert.Equal(bytes, VolumeOf(group, () => Sum(chunked)));

            Tensor Sum(SequenceParallelRegion region)
            {
                var sum = zeros(Outputs, Features, dtype: float64);
                region.ForEachGathered(x_tH, y_TH.mm(weight_OH.t()), (other, rows) => sum.add_(other.t().mm(rows)));
                return sum;
            }
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void GatherThen_Chunks_NextGatherIsUnderWayWhenAProductBegins()
    {
        var numStarted = new int[2];
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        var observed = new ObservedWorld(world, started => numStarted[started.GlobalRank]++);
        RankThreads.Run(2, rank =>
        {
            using var scope = NewDisposeScope();
            using var group = observed.Create("tp", rank, [0, 1]);
            var region = new SequenceParallelRegion(group, true, numChunks: 4);
            var atProduct = new List<int>();
            region.GatherThen(ones(8, Features), rows =>
            {
                atProduct.Add(numStarted[rank]);
                return rows.mul(2);
            });
            Assert.Equal([2, 3, 4, 4], atProduct);
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void ThenReduce_Chunks_WaitsForNoReductionBeforeTheLastProduct()
    {
        // Rank 1 starts its first reduction only when rank 0 has made all its products: rank 0 cannot have waited.
        using var hasMultiplied = new ManualResetEventSlim();
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        var observed = new ObservedWorld(world, started =>
        {
            if (started.GlobalRank == 1) Assert.True(hasMultiplied.Wait(TimeSpan.FromSeconds(30)));
        });
        RankThreads.Run(2, rank =>
        {
            using var scope = NewDisposeScope();
            using var group = observed.Create("tp", rank, [0, 1]);
            var numProducts = 0;
            var sum = new SequenceParallelRegion(group, true, numChunks: 4).ThenReduce(ones(16, Features), rows =>
            {
                if (rank == 0 && ++numProducts == 4) hasMultiplied.Set();
                return rows.mul(2);
            });
            Assert.Equal(4f, sum.min().item<float>());
        }, failure => world.Abort(failure.Message));
    }

    private static long VolumeOf(ProcessGroup group, Action run)
    {
        group.Volume.Reset();
        run();
        return group.Volume.BytesByOperation.Values.Sum();
    }

    private static void AssertClose(Tensor expected, Tensor actual)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.True((expected - actual).abs().max().item<double>() <= 1e-12);
    }
}
