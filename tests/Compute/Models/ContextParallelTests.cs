using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Models;

/// <summary>
/// A model whose row is split over context-parallel ranks against one rank: loss and every gradient, with dropout, alone and with tensor
/// and sequence parallelism. fp32 sums run in another order; recompute changes no bit.
/// </summary>
public sealed class ContextParallelTests
{
    private const double Tolerance = 2e-5;

    [Theory]
    [InlineData(1, 2, ContextExchange.Ring, 0.0)]
    [InlineData(1, 2, ContextExchange.AllToAll, 0.3)]
    [InlineData(1, 4, ContextExchange.Ring, 0.3)]
    [InlineData(1, 4, ContextExchange.AllToAll, 0.0)]
    [InlineData(2, 2, ContextExchange.Ring, 0.3)]
    [InlineData(2, 2, ContextExchange.AllToAll, 0.3)]
    public void GptModel_RowSplitOverRanks_EqualsOneRank(int tp, int cp, ContextExchange exchange, double dropout)
    {
        var config = TestModels.Config with
        {
            NumAttentionHeads = 8, NumQueryGroups = 4, AddQkvBias = true, QkLayerNorm = true, AttentionDropout = dropout, HiddenDropout = dropout,
        };
        var options = TestModels.Options(ScalarType.Float32) with { Attention = TestModels.Auto with { ContextExchange = exchange } };
        var batch = TestBatches.Random(new Random(3), config.VocabSize, [8, 24, 8, 16], numPaddingTokens: 8);
        var expected = Run(config, options, batch, ParallelState.SingleRank());

        foreach (var recompute in Recomputes)
        {
            var ranks = RunRanks(config, options with { Recompute = recompute }, batch, tp, cp);
            Assert.Equal(expected.Loss, ranks.Where((_, rank) => rank % tp == 0).Sum(result => (double)result.Loss), 1e-5 * expected.Loss);
            foreach (var (name, gradient) in expected.Gradients) AssertClose(name, gradient, Combine(name, gradient.Length, ranks));
        }
    }

    [Fact]
    public void GptModel_AnyRecompute_HasTheSameBits()
    {
        var config = TestModels.Config with { AttentionDropout = 0.1, HiddenDropout = 0.1 };
        var batch = TestBatches.Random(new Random(4), config.VocabSize, [8, 24, 8]);
        var runs = Recomputes.Select(recompute => RunRanks(config, TestModels.Options(ScalarType.Float32) with { Recompute = recompute }, batch, 1, 2)).ToArray();
        foreach (var run in runs[1..])
            for (var rank = 0; rank < 2; rank++)
            {
                Assert.Equal(runs[0][rank].Loss, run[rank].Loss);
                foreach (var (name, gradient) in runs[0][rank].Gradients) Assert.Equal(gradient, run[rank].Gradients[name]);
            }
    }

    // Nothing that grows with the row is held whole on a rank: activations divide by cp to the byte.
    [Theory]
    [InlineData(2, ContextExchange.Ring)]
    [InlineData(4, ContextExchange.Ring)]
    [InlineData(2, ContextExchange.AllToAll)]
    public void GptModel_RowSplitOverRanks_SavesItsShareOfTheActivations(int cp, ContextExchange exchange)
    {
        var config = TestModels.Config with { NumAttentionHeads = 8, NumQueryGroups = 4, QkLayerNorm = true };
        var options = TestModels.Options(ScalarType.Float32) with { Attention = TestModels.Auto with { ContextExchange = exchange } };
        var batch = TestBatches.Random(new Random(6), config.VocabSize, [16, 16, 16]);
        foreach (var recompute in Recomputes)
        {
            var whole = Run(config, options with { Recompute = recompute }, batch, ParallelState.SingleRank()).SavedBytes;
            Assert.All(RunRanks(config, options with { Recompute = recompute }, batch, 1, cp), rank => Assert.Equal(whole / cp, rank.SavedBytes));
        }
    }

    // Decisions belong to tokens: what a rank drops is what one rank drops at the same tokens, bit for bit.
    [Fact]
    public void Dropout_RowSplitOverRanks_DropsTheSameValues()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var batch = TestBatches.Random(new Random(5), 50, [16, 8, 32]);
        var x = randn(batch.NumTokens, 12);
        var dropout = new Dropout(0.4, seed: 7, layerIndex: 3, DropoutStream.MlpOutput);
        using var context = new ForwardContext(batch, CPU, 2, isTraining: true, 1, 1);
        using var saved = new Saved(context);
        var whole = dropout.Forward(x, 0, saved);
        for (var rank = 0; rank < 4; rank++)
        {
            var split = new ContextSplit(rank, 4);
            var rows = tensor(Array.ConvertAll(split.RowsOf(batch, rank), row => (long)row));
            using var part = new ForwardContext(split.Take(batch), CPU, 2, isTraining: true, 1, 1) { WholeRow = batch };
            using var partSaved = new Saved(part);
            Assert.Equal(whole.index_select(0, rows).data<float>().ToArray(), dropout.Forward(x.index_select(0, rows), 0, partSaved).data<float>().ToArray());
        }
    }

    private static RecomputeOptions[] Recomputes =>
    [
        RecomputeOptions.Off,
        new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.CoreAttention | RecomputeModules.LayerNorm },
        new() { Granularity = RecomputeGranularity.Full, Method = RecomputeMethod.Uniform, NumLayers = 1 },
    ];

    private static Result[] RunRanks(ModelConfig config, ModelOptions options, MicroBatch batch, int tp, int cp)
    {
        var world = new LoopbackWorld(TimeSpan.FromSeconds(60));
        var dims = new ParallelDims(tp * cp, tp, 1, cp, 1, null);
        var results = new Result[tp * cp];
        RankThreads.Run(tp * cp, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel: tp > 1);
            results[rank] = Run(config, options, batch, parallel);
        }, failure => world.Abort(failure.Message));
        return results;
    }

    private static Result Run(ModelConfig config, ModelOptions options, MicroBatch batch, ParallelState parallel)
    {
        using var scope = NewDisposeScope();
        using var model = new GptModel(config, options, parallel, StageLayout.Whole(config));
        ModelInitializer.Initialize(model.Parameters, config with { InitializerRange = 0.3 }, seed: 4);
        using var gradients = TestModels.AttachGradients(model.Parameters);
        var own = new ContextSplit(parallel.ContextParallel.Rank, parallel.ContextParallel.Size).Take(batch);
        using var context = new ForwardContext(own, CPU, 0, isTraining: true, 0.25, 1) { WholeRow = batch };
        using var saved = new Saved(context);
        var loss = model.ForwardStage(null, saved).item<float>();
        var savedBytes = saved.SizeBytes;
        Assert.Null(model.BackwardInput(null, saved));
        model.BackwardWeight(saved);
        Assert.Equal(0, saved.SizeBytes);

        var result = new Result(loss, savedBytes, [], []);
        foreach (var parameter in model.Parameters)
        {
            // What the optimizer does: partial sums over the tensor-parallel group, then over the ranks that share the weights.
            if (parameter.Traits.IsSequenceParallel) parallel.TensorParallel.AllReduce(parameter.MainGrad, ReduceOp.Sum).Wait();
            parallel.DataContextParallel.AllReduce(parameter.MainGrad, ReduceOp.Sum).Wait();
            foreach (var block in parameter.Blocks)
            {
                var values = parameter.MainGrad.view(-1).narrow(0, block.FlatOffset, block.NumElements).data<float>().ToArray();
                result.Blocks.Add((block, values));
                result.Gradients[block.Name] = values;
            }
        }
        return result;
    }

    /// <summary>Puts the ranks' blocks of one Hugging Face tensor together.</summary>
    private static float[] Combine(string name, int length, Result[] results)
    {
        var whole = new float[length];
        foreach (var (block, values) in results.SelectMany(result => result.Blocks).Where(entry => entry.Block.Name == name))
        {
            var width = (int)block.Shape[^1];
            for (var row = 0; row < values.Length / width; row++)
            {
                var start = block.Shape.Length == 1 ? block.Offset[0] : (block.Offset[0] + row) * block.GlobalShape[1] + block.Offset[1];
                values.AsSpan(row * width, width).CopyTo(whole.AsSpan((int)start, width));
            }
        }
        return whole;
    }

    private static void AssertClose(string what, float[] expected, float[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        var (difference, size) = (0.0, 0.0);
        for (var i = 0; i < expected.Length; i++)
        {
            difference += Math.Pow(expected[i] - actual[i], 2);
            size += Math.Pow(expected[i], 2);
        }
        Assert.True(Math.Sqrt(difference / size) <= Tolerance, $"{what}: relative L2 {Math.Sqrt(difference / size)}");
    }

    private sealed record Result(float Loss, long SavedBytes, Dictionary<string, float[]> Gradients, List<(TensorBlock Block, float[] Values)> Blocks);
}
