using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.TensorParallel;

/// <summary>Products and collectives in chunks: the same results and bytes as in one piece, and one running beside the other.</summary>
public sealed class SequenceParallelRegionTests
{
    private const int LocalTokens = 7, Features = 6, Outputs = 10;

    /// <summary>Ranks, chunks, dtype.</summary>
    public static TheoryData<int, int, ScalarType> Narrow => new()
    {
        { 2, 3, ScalarType.BFloat16 }, { 4, 4, ScalarType.BFloat16 }, { 2, 16, ScalarType.BFloat16 }, { 2, 3, ScalarType.Float16 }, { 4, 4, ScalarType.Float16 },
    };

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

    /// <summary>16 bits: what is moved, and sums over ranks of the same terms, have the same bits in chunks as in one piece.</summary>
    [Theory, MemberData(nameof(Narrow))]
    public void Chunks_In16Bits_MoveAndSumTheSameBits(int size, int numChunks, ScalarType dtype) => Run(size, numChunks, (group, whole, chunked) =>
    {
        var x_tH = Random(group.Rank, LocalTokens, Features).to_type(dtype);
        var y_TH = Random(group.Rank + 10, size * LocalTokens, Features).to_type(dtype);
        AssertSameBits(whole.GatherThen(x_tH, rows => rows.mul(3), out var gathered), chunked.GatherThen(x_tH, rows => rows.mul(3), out var gatheredInChunks));
        AssertSameBits(gathered, gatheredInChunks);
        AssertSameBits(whole.ThenReduce(y_TH, rows => rows.mul(3)), chunked.ThenReduce(y_TH, rows => rows.mul(3)));
    });

    /// <summary>
    /// The two parallel linear layers in 16 bits, in one piece and in chunks, against double precision on the same values: an element is off by
    /// at most 2^-8 (fp16: 2^-11) for each rounding, N of them adding up like a random walk, relative to the size of its terms.
    /// </summary>
    [Theory, MemberData(nameof(Narrow))]
    public void LinearLayers_ChunksIn16Bits_StayNearTheOracle(int size, int numChunks, ScalarType dtype) => Run(size, numChunks, (group, whole, chunked) =>
    {
        // Values of all ranks, rounded to 16 bits: what a rank holds is a part of each.
        Tensor Rounded(int seed, params long[] shape) => Random(seed, shape).to_type(dtype).to_type(ScalarType.Float64);
        var (rank, tokens) = (group.Rank, size * LocalTokens);
        var (x_TH, weight_OH, grad_TO) = (Rounded(1, tokens, Features), Rounded(2, size * Outputs, Features), Rounded(3, tokens, size * Outputs));
        using var scope = NewDisposeScope();
        foreach (var region in (SequenceParallelRegion[])[whole, chunked])
        {
            var weight = PartOf(weight_OH, dim: 0);
            var column = Run(w => new ColumnParallelLinear(w, bias_o: null, region, ProductOptions.Default), weight, PartOf(x_TH, dim: 0), PartOf(grad_TO, dim: 1));
            AssertNear(column.Output, x_TH, weight.t(), numRoundings: 1);
            AssertNear(column.GradInput, PartOf(grad_TO, dim: 0), weight_OH, numRoundings: size);
            AssertNear(column.GradWeight, PartOf(grad_TO, dim: 1).t(), x_TH, numRoundings: numChunks);

            // The row layer takes the other way: its input is split by features, its output by tokens.
            var row = Run(w => new RowParallelLinear(w, region, ProductOptions.Default), weight.t(), PartOf(grad_TO, dim: 1), PartOf(x_TH, dim: 0));
            AssertNear(row.Output, PartOf(grad_TO, dim: 0), weight_OH, numRoundings: size);
            AssertNear(row.GradInput, x_TH, weight.t(), numRoundings: 1);
            AssertNear(row.GradWeight, x_TH.t(), PartOf(grad_TO, dim: 1), numRoundings: numChunks);
        }

        Tensor PartOf(Tensor all, int dim) => all.narrow(dim, rank * (all.shape[dim] / size), all.shape[dim] / size);

        (Tensor Output, Tensor GradInput, Tensor GradWeight) Run(Func<Parameter, ILayer> create, Tensor weightValues, Tensor x, Tensor gradOutput)
        {
            using var parameter = new Parameter(
                "weight", weightValues.to_type(dtype).contiguous(), [TensorBlock.Whole("weight", weightValues.shape)], new ParameterTraits { Decays = true });
            using var gradients = TestModels.AttachGradients([parameter]);
            using var context = new ForwardContext(TestBatches.Random(new Random(1), 8, [8]), CPU, 0, isTraining: true, 1, 1);
            using var saved = new Saved(context);
            var layer = create(parameter);
            var output = layer.Forward(x.to_type(dtype).contiguous(), saved);
            var gradInput = layer.BackwardInput(gradOutput.to_type(dtype).contiguous(), saved);
            layer.BackwardWeight(saved);
            return (output, gradInput, parameter.MainGrad.clone());
        }

        void AssertNear(Tensor actual, Tensor left, Tensor right, int numRoundings)
        {
            var unit = Math.Pow(2, dtype == ScalarType.BFloat16 ? -8 : -11);
            var bound = left.abs().mm(right.abs()).mul(unit * Math.Sqrt(numRoundings));
            Assert.True((actual.to_type(ScalarType.Float64) - left.mm(right)).abs().le(bound).all().item<bool>());
        }
    });

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

    /// <summary>Runs <paramref name="body"/> on every rank with a region in one piece and one in chunks.</summary>
    private static void Run(int size, int numChunks, Action<ProcessGroup, SequenceParallelRegion, SequenceParallelRegion> body)
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(size, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var scope = NewDisposeScope();
            using var group = world.Create("tp", rank, [.. Enumerable.Range(0, size)]);
            body(group, new SequenceParallelRegion(group, true), new SequenceParallelRegion(group, true, numChunks));
        }, failure => world.Abort(failure.Message));
    }

    private static Tensor Random(int seed, params long[] shape)
    {
        using var generator = new Generator((ulong)seed);
        return randn(shape, dtype: float64, generator: generator);
    }

    private static long VolumeOf(ProcessGroup group, Action run)
    {
        group.Volume.Reset();
        run();
        return group.Volume.BytesByOperation.Values.Sum();
    }

    private static void AssertSameBits(Tensor expected, Tensor actual)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.True(expected.eq(actual).all().item<bool>());
    }

    private static void AssertClose(Tensor expected, Tensor actual)
    {
        Assert.Equal(expected.shape, actual.shape);
        Assert.True((expected - actual).abs().max().item<double>() <= 1e-12);
    }
}
