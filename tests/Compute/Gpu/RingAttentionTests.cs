using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Ops.ContextParallel;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Gpu;

/// <summary>
/// The ring with flash kernels over packed rows, the ranks being threads that share one GPU, against matrix products in fp32 on one rank.
/// </summary>
[Trait("Category", "gpu")]
public sealed class RingAttentionTests(ITestOutputHelper output)
{
    [Theory]
    [InlineData(2, ScalarType.BFloat16)]
    [InlineData(4, ScalarType.BFloat16)]
    [InlineData(2, ScalarType.Float16)]
    public void RingAttention_PackedSegments_EqualsUnfusedOnOneRank(int numRanks, ScalarType dtype)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var random = new Random(seed);
        var unit = 2 * numRanks;
        var batch = TestBatches.Random(random, 50, [unit, 40 * unit, unit, random.Next(1, 50) * unit], numPaddingTokens: 3 * unit);
        var shape = new AttentionShape(8, 2, 64, FirstHead: 0, LayerIndex: 0);
        var heads = randn([batch.NumTokens, 12, 64], ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(dtype);
        var grad = randn([batch.NumTokens, 8, 64], ScalarType.Float32, Megatron.Testing.Gpu.Device).to_type(dtype);
        grad.narrow(0, batch.NumTokens - batch.NumPaddingTokens, batch.NumPaddingTokens).zero_();
        var (expectedOutput, expectedGradients) = Run(
            new CoreAttention(shape, TestModels.Unfused, 0, 1, recompute: false), batch, batch, heads.to_type(ScalarType.Float32), grad.to_type(ScalarType.Float32));

        var world = new LoopbackWorld(TimeSpan.FromSeconds(60));
        RankThreads.Run(numRanks, rank =>
        {
            using var rankScope = NewDisposeScope();
            using var group = world.Create("cp", rank, [.. Enumerable.Range(0, numRanks)]);
            var split = new ContextSplit(rank, numRanks);
            var rows = tensor(Array.ConvertAll(split.RowsOf(batch, rank), row => (long)row), ScalarType.Int64, Megatron.Testing.Gpu.Device);
            var (result, gradients) = Run(
                new RingAttention(shape, TestModels.Auto, 0, 1, recompute: false, group), split.Take(batch), batch, heads.index_select(0, rows), grad.index_select(0, rows));
            AssertClose($"output of rank {rank}", result, expectedOutput.index_select(0, rows), split.Take(batch).NumPaddingTokens);
            AssertClose($"gradients of rank {rank}", gradients, expectedGradients.index_select(0, rows), split.Take(batch).NumPaddingTokens);
        }, failure => world.Abort(failure.Message));
    }

    private static (Tensor Output, Tensor Gradients) Run(ICoreAttention attention, MicroBatch own, MicroBatch whole, Tensor heads, Tensor grad)
    {
        using var context = new ForwardContext(own, Megatron.Testing.Gpu.Device, 0, isTraining: true, 1, 0) { WholeRow = whole };
        using var saved = new Saved(context);
        var result = attention.Forward(heads.narrow(1, 0, 8), heads.narrow(1, 8, 2), heads.narrow(1, 10, 2), saved);
        var (gradQuery, gradKey, gradValue) = attention.Backward(grad, saved);
        Assert.Equal(0, saved.SizeBytes);
        return (result, cat([gradQuery, gradKey, gradValue], 1));
    }

    /// <summary>The output at padding is no result: one kernel skips it, the other computes it.</summary>
    private static void AssertClose(string what, Tensor actual, Tensor expected, int numPadding)
    {
        var numReal = actual.shape[0] - numPadding;
        var difference = actual.narrow(0, 0, numReal).to_type(ScalarType.Float32).sub(expected.narrow(0, 0, numReal)).norm().item<float>();
        var size = expected.narrow(0, 0, numReal).norm().item<float>();
        Assert.True(difference <= 1e-2 * size, $"{what}: relative L2 {difference / size:E2}");
    }
}
