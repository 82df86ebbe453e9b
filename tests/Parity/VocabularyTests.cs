using Megatron.Compute.Configuration;

namespace Megatron.Parity.Tests;

/// <summary>
/// A vocabulary of 251, a prime: tensor-parallel ranks pad it in memory. Twenty steps equal those of one rank, and the weights that are gathered have
/// 251 rows.
/// </summary>
public sealed class VocabularyTests(ITestOutputHelper output)
{
    private const int VocabSize = 251, HiddenSize = 32;

    [Theory]
    [InlineData(false, 2, 1, false, false)]
    [InlineData(true, 2, 1, true, true)]
    [InlineData(false, 4, 1, true, true)]
    [InlineData(true, 4, 1, false, false)]
    [InlineData(true, 2, 2, true, true)]
    public void Trajectory_VocabularyThatTensorParallelismDoesNotDivide_EqualsOneRank(
        bool tied, int tensorParallelSize, int stages, bool sequenceParallel, bool distributedOptimizer)
    {
        ModelConfig Change(ModelConfig golden) => golden with { VocabSize = VocabSize, TieWordEmbeddings = tied };
        var alone = LayoutRun.Run("qwen3-dense", Change, new TrainingConfig { MicroBatchSize = 2 }, 1, perTokenLoss: true);
        var ranks = tensorParallelSize * stages * (distributedOptimizer ? 2 : 1);
        var split = LayoutRun.Run("qwen3-dense", Change, new TrainingConfig
        {
            MicroBatchSize = 2, TensorModelParallelSize = tensorParallelSize, PipelineModelParallelSize = stages, SequenceParallel = sequenceParallel,
            UseDistributedOptimizer = distributedOptimizer,
        }, ranks, perTokenLoss: true);
        Assert.Equal(VocabSize * HiddenSize, split.Weights["model.embed_tokens.weight"].Length);
        var deviation = new[] { Largest(alone.Losses, split.Losses), Largest(alone.GradNorms, split.GradNorms), alone.Weights.Max(pair => Relative(pair.Value, split.Weights[pair.Key])) };
        output.WriteLine(string.Join(" / ", deviation.Select(value => $"{value:0.0e+0}")));
        Assert.True(deviation[0] <= 1e-6 && deviation[1] <= 1e-5 && deviation[2] <= 1e-3, string.Join(" / ", deviation));
    }

    private static double Largest(double[] expected, double[] actual) => expected.Zip(actual, (wanted, found) => Math.Abs(found - wanted) / Math.Abs(wanted)).Max();

    private static double Relative(float[] expected, float[] actual)
    {
        Assert.Equal(expected.Length, actual.Length);
        return Math.Sqrt(expected.Zip(actual, (x, y) => Math.Pow(x - (double)y, 2)).Sum() / expected.Sum(x => Math.Pow(x, 2)));
    }
}
