using Megatron.Compute.Configuration;

namespace Megatron.Parity.Tests;

/// <summary>With logical data shards no bit depends on the number of data-parallel ranks (DESIGN D12).</summary>
public sealed class LogicalShardsTests
{
    [Theory]
    [InlineData("qwen2.5-dense", true, 1, 1)]
    [InlineData("qwen3-dense", false, 1, 1)]
    [InlineData("qwen2.5-dense", true, 2, 1)]
    [InlineData("qwen3-dense", true, 1, 2)]
    public void TrainSteps_FourShards_AreBitwiseEqualOnOneTwoAndFourReplicas(string model, bool distributedOptimizer, int pipeline, int context)
    {
        var config = new TrainingConfig
        {
            LogicalDataShards = 4, MicroBatchSize = 1, UseDistributedOptimizer = distributedOptimizer, PipelineModelParallelSize = pipeline,
            ContextParallelSize = context,
        };
        var one = LayoutRun.Run(model, config, pipeline * context, perTokenLoss: true);
        foreach (var replicas in (int[])[2, 4])
        {
            var several = LayoutRun.Run(model, config, replicas * pipeline * context, perTokenLoss: true);
            Assert.Equal(one.Losses, several.Losses);
            Assert.Equal(one.GradNorms, several.GradNorms);
            Assert.Equal(one.BatchHashes, several.BatchHashes);
            Assert.All(one.Weights, pair => Assert.Equal(pair.Value, several.Weights[pair.Key]));
        }
    }

    [Fact]
    public void TrainSteps_WithoutShards_AgreeToRounding()
    {
        var config = new TrainingConfig { MicroBatchSize = 1 };
        var (one, two) = (LayoutRun.Run("qwen3-dense", config, 1, perTokenLoss: true), LayoutRun.Run("qwen3-dense", config, 2, perTokenLoss: true));
        Assert.Equal(one.BatchHashes, two.BatchHashes);
        for (var step = 0; step < one.Losses.Length; step++) Assert.Equal(one.Losses[step], two.Losses[step], one.Losses[step] * 1e-5);
    }
}
