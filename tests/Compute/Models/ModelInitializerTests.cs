using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Models;

/// <summary>Initial weights: the rule by tensor and its spread. That the layout does not matter is shown by TensorParallelTests.</summary>
public sealed class ModelInitializerTests
{
    [Fact]
    public void Initialize_EveryTensor_FollowsItsRule()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { HiddenSize = 256, FfnHiddenSize = 512, NumLayers = 8, AddQkvBias = true, QkLayerNorm = true };
        using var model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
        ModelInitializer.Initialize(model.Parameters, config, seed: 1);
        foreach (var parameter in model.Parameters)
            foreach (var block in parameter.Blocks)
            {
                var values = parameter.Data.view(-1).narrow(0, block.FlatOffset, block.NumElements);
                var (mean, deviation) = (values.mean().item<float>(), values.std(unbiased: false).item<float>());
                var (expectedMean, expectedDeviation) = Expected(block.Name, config);
                Assert.Equal(expectedMean, mean, 6 * expectedDeviation / Math.Sqrt(block.NumElements));
                Assert.Equal(expectedDeviation, deviation, 6 * expectedDeviation / Math.Sqrt(2.0 * block.NumElements));
            }
    }

    [Fact]
    public void Initialize_OtherSeed_GivesOtherWeights()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var model = TestModels.Whole(TestModels.Config, TestModels.Options(ScalarType.BFloat16));
        ModelInitializer.Initialize(model.Parameters, TestModels.Config, seed: 1);
        var first = model.Parameters[0].Data.clone();
        ModelInitializer.Initialize(model.Parameters, TestModels.Config, seed: 1);
        Assert.True(model.Parameters[0].Data.eq(first).all().item<bool>());
        ModelInitializer.Initialize(model.Parameters, TestModels.Config, seed: 2);
        Assert.False(model.Parameters[0].Data.eq(first).all().item<bool>());
    }

    private static (double Mean, double Deviation) Expected(string name, ModelConfig config)
    {
        if (name.EndsWith("norm.weight", StringComparison.Ordinal)) return (1, 0);
        if (name.EndsWith("bias", StringComparison.Ordinal)) return (0, 0);
        var entersResidual = name.Contains("o_proj") || name.Contains("down_proj");
        return (0, entersResidual ? 0.02 / Math.Sqrt(2 * config.NumLayers) : 0.02);
    }
}
