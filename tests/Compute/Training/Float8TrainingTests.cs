using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Training;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Training;

/// <summary>Training with the products of linear layers in float8 follows training without.</summary>
public sealed class Float8TrainingTests(ITestOutputHelper output)
{
    private const int Steps = 100;

    /// <summary>A tenth of the steps, whose mean loss is compared.</summary>
    private const int Window = 10;

    private static readonly ModelConfig Small = TestModels.Config with
    {
        HiddenSize = 64, FfnHiddenSize = 96, NumAttentionHeads = 4, NumQueryGroups = 2, KvChannels = 16, VocabSize = 96, MaxPositionEmbeddings = 64, QkLayerNorm = true,
    };

    private static readonly ModelConfig Medium = TestModels.Config with
    {
        NumLayers = 8, HiddenSize = 512, FfnHiddenSize = 1536, NumAttentionHeads = 8, NumQueryGroups = 4, KvChannels = 64, VocabSize = 4000, MaxPositionEmbeddings = 512,
        QkLayerNorm = true,
    };

    [Theory, InlineData("e4m3"), InlineData("hybrid")]
    public void Train_100StepsOnTheCpu_LossWithin1PercentOfFloat32(string format) =>
        Compare(new TrainingConfig { TorchDtype = "float32", MicroBatchSize = 2, Fp8Format = format }, Small, CPU, rows: 4, length: 32, learningRate: 3e-3);

    [Theory, InlineData("e4m3"), InlineData("hybrid"), Trait("Category", "gpu")]
    public void Train_100StepsOnAGpu_LossWithin1PercentOfBf16(string format)
    {
        Assert.SkipWhen(Megatron.Testing.Gpu.IsMissing, Megatron.Testing.Gpu.WhyNot ?? "");
        Compare(new TrainingConfig { TorchDtype = "bfloat16", MicroBatchSize = 8, Fp8Format = format }, Medium, Megatron.Testing.Gpu.Device, rows: 16, length: 256, learningRate: 1e-3);
    }

    private void Compare(TrainingConfig config, ModelConfig model, Device device, int rows, int length, double learningRate)
    {
        var source = Source(model.VocabSize, rows, length, config.MicroBatchSize);
        var expected = Train(config with { Fp8Format = null }, model, device, source, learningRate);
        var actual = Train(config, model, device, source, learningRate);
        for (var start = 0; start < Steps; start += Window) Report($"steps {start + 1} to {start + Window}", start..(start + Window));
        Assert.True(expected[^1] < expected[0] - 0.5, $"the loss did not fall: {expected[0]} to {expected[^1]}");
        Assert.NotEqual(expected, actual);
        Assert.InRange(Report("all", ..), -0.01, 0.01);
        Assert.InRange(Report("at the end", ^Window..), -0.01, 0.01);

        double Report(string what, Range steps)
        {
            var (mean, float8) = (expected[steps].Average(), actual[steps].Average());
            output.WriteLine($"{what}: {mean:F4} without, {float8:F4} with {config.Fp8Format}, {100 * (float8 / mean - 1):F2} %");
            return float8 / mean - 1;
        }
    }

    private static double[] Train(TrainingConfig config, ModelConfig modelConfig, Device device, PlannedBatchSource source, double learningRate)
    {
        using var parallel = ParallelState.SingleRank();
        using var model = new ModelChunks(modelConfig, RunSettings.Model(config, device), parallel, [StageLayout.Whole(modelConfig)]);
        ModelInitializer.Initialize(model.Parameters, modelConfig, seed: 3);
        using var trainer = new Trainer(model, parallel, device, RunSettings.Trainer(config));
        trainer.Optimizer.CopyModelToMasters();
        return [.. Enumerable.Range(0, Steps).Select(step => trainer.TrainStep(source.Get(step), learningRate).Loss)];
    }

    /// <summary>Each token follows from the one before in 7 cases of 10 and is any token else: learnable, with a loss that stays well above 0.</summary>
    private static PlannedBatchSource Source(int vocabulary, int rows, int length, int microBatchSize)
    {
        var random = new Random(5);
        var ids = new long[Steps * rows * length];
        for (var i = 0; i < ids.Length; i++)
            ids[i] = i % length == 0 || random.Next(10) >= 7 ? random.Next(vocabulary) : (7 * ids[i - 1] + 3) % vocabulary;
        return ArrayBatchSource.Create(ids, ids, rows, length, BatchLayout.SingleRankUnpadded(microBatchSize));
    }
}
