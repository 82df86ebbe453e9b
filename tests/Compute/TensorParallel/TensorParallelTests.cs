using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.TensorParallel;

/// <summary>
/// A model split over two and four tensor-parallel ranks, with and without sequence parallelism, against one rank: same initial weights by
/// construction, then loss, logits and every gradient. fp32 gradients differ by the order of the sums over ranks only.
/// </summary>
public sealed class TensorParallelTests
{
    private const double Tolerance = 2e-5;

    [Theory]
    [InlineData(2, false, false, 0.0)]
    [InlineData(2, true, false, 0.0)]
    [InlineData(2, true, true, 0.3)]
    [InlineData(2, false, true, 0.3)]
    [InlineData(4, true, false, 0.0)]
    [InlineData(4, false, true, 0.0)]
    [InlineData(2, true, false, 0.0, 4)]
    [InlineData(2, true, true, 0.3, 5)]
    [InlineData(4, true, false, 0.0, 8)] // more chunks than a rank has tokens
    public void GptModel_SplitOverRanks_EqualsOneRank(int tp, bool sequenceParallel, bool tied, double dropout, int overlapChunks = 1) =>
        Compare(Config with { TieWordEmbeddings = tied, AttentionDropout = dropout, HiddenDropout = dropout }, tp, sequenceParallel, overlapChunks);

    // 51 = 3 · 17: padding on the last rank; 19 on four ranks: the last one has padding alone.
    [Theory]
    [InlineData(2, false, true, 51)]
    [InlineData(2, true, false, 51)]
    [InlineData(4, true, true, 51)]
    [InlineData(4, false, false, 19)]
    [InlineData(4, true, true, 19)]
    public void GptModel_VocabularyThatTensorParallelismDoesNotDivide_EqualsOneRank(int tp, bool sequenceParallel, bool tied, int vocabSize) =>
        Compare(Config with { TieWordEmbeddings = tied, VocabSize = vocabSize }, tp, sequenceParallel);

    private static ModelConfig Config { get; } = TestModels.Config with { NumAttentionHeads = 8, NumQueryGroups = 4, AddQkvBias = true, QkLayerNorm = true };

    private static void Compare(ModelConfig config, int tp, bool sequenceParallel, int overlapChunks = 1)
    {
        var batch = TestBatches.Random(new Random(3), config.VocabSize, [8, 8, 5], numPaddingTokens: 3);
        var expected = Run(config, batch, ParallelState.SingleRank(), 1);

        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        var dims = new ParallelDims(tp, tp, 1, 1, 1, null);
        var actual = new Result[tp];
        RankThreads.Run(tp, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel);
            actual[rank] = Run(config, batch, parallel, overlapChunks);
        }, failure => world.Abort(failure.Message));

        foreach (var result in actual)
        {
            Assert.Equal(expected.Loss, result.Loss, 1e-5 * expected.Loss);
            AssertClose("logits", expected.Logits, result.Logits);
        }
        foreach (var (name, gradient) in expected.Gradients) AssertClose(name, gradient, Combine(name, gradient.Length, actual));
    }

    /// <summary>Puts the ranks' blocks of one Hugging Face tensor together; replicated ones must agree.</summary>
    private static float[] Combine(string name, int length, Result[] results)
    {
        var whole = new float[length];
        foreach (var result in results)
            foreach (var (block, values) in result.Blocks.Where(entry => entry.Block.Name == name))
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

    private static Result Run(ModelConfig config, MicroBatch batch, ParallelState parallel, int overlapChunks)
    {
        using var scope = NewDisposeScope();
        using var model = new GptModel(config, TestModels.Options(ScalarType.Float32) with { TensorOverlapChunks = overlapChunks }, parallel, StageLayout.Whole(config));
        ModelInitializer.Initialize(model.Parameters, config with { InitializerRange = 0.3 }, seed: 4);
        using var gradients = TestModels.AttachGradients(model.Parameters);
        using var evaluation = new ForwardContext(batch, CPU, 0, isTraining: false, 1, 1);
        using var evaluationSaved = new Saved(evaluation);
        var logits = model.ForwardLogits(null, evaluationSaved).data<float>().ToArray();

        using var context = new ForwardContext(batch, CPU, 0, isTraining: true, 0.25, 1);
        using var saved = new Saved(context);
        var loss = model.ForwardStage(null, saved).item<float>();
        Assert.Null(model.BackwardInput(null, saved));
        model.BackwardWeight(saved);

        var result = new Result(loss, logits, [], []);
        foreach (var parameter in model.Parameters)
        {
            // What the optimizer does with gradients that cover this rank's tokens or heads only.
            if (parameter.Traits.IsSequenceParallel) parallel.TensorParallel.AllReduce(parameter.MainGrad, ReduceOp.Sum).Wait();
            var numInFiles = parameter.Blocks.Sum(block => block.NumElements);
            foreach (var tensor in (Tensor[])[parameter.Data, parameter.MainGrad])
                Assert.False(tensor.view(-1).narrow(0, numInFiles, parameter.NumElements - numInFiles).ne(0).any().item<bool>());
            foreach (var block in parameter.Blocks)
            {
                var values = parameter.MainGrad.view(-1).narrow(0, block.FlatOffset, block.NumElements).data<float>().ToArray();
                result.Blocks.Add((block, values));
                result.Gradients[block.Name] = values;
            }
        }
        return result;
    }

    private static void AssertClose(string what, float[] expected, float[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        double difference = 0, size = 0;
        for (var i = 0; i < expected.Length; i++)
        {
            difference += Math.Pow(expected[i] - actual[i], 2);
            size += Math.Pow(expected[i], 2);
        }
        Assert.True(Math.Sqrt(difference / size) <= Tolerance, $"{what}: relative L2 {Math.Sqrt(difference / size)}");
    }

    private sealed record Result(float Loss, float[] Logits, Dictionary<string, float[]> Gradients, List<(TensorBlock Block, float[] Values)> Blocks);
}
