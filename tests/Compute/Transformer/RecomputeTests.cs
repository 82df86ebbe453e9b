using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Transformer;

/// <summary>Activation recompute: every mode gives the bits of no recompute, and keeps less.</summary>
public sealed class RecomputeTests(ITestOutputHelper output)
{
    /// <summary>All granularities, methods and modules.</summary>
    public static IReadOnlyList<RecomputeOptions> Modes { get; } =
    [
        RecomputeOptions.Off,
        Selective(RecomputeModules.CoreAttention),
        Selective(RecomputeModules.Mlp),
        Selective(RecomputeModules.LayerNorm),
        Selective(RecomputeModules.CoreAttention | RecomputeModules.Mlp | RecomputeModules.LayerNorm),
        Full(RecomputeMethod.Uniform, 1),
        Full(RecomputeMethod.Uniform, 2),
        Full(RecomputeMethod.Uniform, 3),
        Full(RecomputeMethod.Block, 0),
        Full(RecomputeMethod.Block, 2),
        Full(RecomputeMethod.Block, 9),
    ];

    [Theory]
    [InlineData(ScalarType.Float32, AttentionBackend.Auto, 0.0)]
    [InlineData(ScalarType.Float32, AttentionBackend.Unfused, 0.2)]
    [InlineData(ScalarType.BFloat16, AttentionBackend.Auto, 0.0)]
    public void GptModel_EveryRecomputeMode_SameBits(ScalarType dtype, AttentionBackend backend, double dropout)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { NumLayers = 4, QkLayerNorm = true, AttentionDropout = dropout, HiddenDropout = dropout };
        var random = new Random(5);
        var batch = TestBatches.Random(random, config.VocabSize, [9, 9, 4], numPaddingTokens: 2);
        using var context = new ForwardContext(batch, CPU, step: 0, isTraining: true, lossFactor: 0.1, auxiliaryLossFactor: 1);
        Tensor[]? expected = null;
        var keptWithout = 0L;
        foreach (var mode in Modes)
        {
            var options = TestModels.Options(dtype) with { Recompute = mode, Attention = TestModels.Auto with { Backend = backend } };
            var (results, keptBytes) = Run(config, options, context);
            output.WriteLine($"{mode}: {keptBytes} bytes kept");
            if (expected is null) (expected, keptWithout) = (results, keptBytes);
            var recomputes = mode.Granularity != RecomputeGranularity.None && !(mode.Granularity == RecomputeGranularity.Full && mode.NumLayers == 0);
            if (recomputes) Assert.True(keptBytes < keptWithout, $"{mode} keeps {keptBytes} of {keptWithout} bytes");
            for (var i = 0; i < results.Length; i++) Assert.True(results[i].eq(expected[i]).all().item<bool>(), $"{mode}: result {i} differs");
        }
    }

    private static (Tensor[] Results, long KeptBytes) Run(Compute.Configuration.ModelConfig config, ModelOptions options, ForwardContext context)
    {
        using var model = TestModels.Whole(config, options);
        ModelInitializer.Initialize(model.Parameters, config, seed: 9);
        using var gradients = TestModels.AttachGradients(model.Parameters);
        using var saved = new Saved(context);
        var loss = model.ForwardStage(null, saved);
        var keptBytes = saved.SizeBytes;
        Assert.Null(model.BackwardInput(null, saved));
        model.BackwardWeight(saved);
        Assert.Equal(0, saved.SizeBytes);
        return ([loss, .. model.Parameters.Select(parameter => parameter.MainGrad.clone())], keptBytes);
    }

    private static RecomputeOptions Selective(RecomputeModules modules) => new() { Granularity = RecomputeGranularity.Selective, Modules = modules };

    private static RecomputeOptions Full(RecomputeMethod method, int numLayers) =>
        new() { Granularity = RecomputeGranularity.Full, Method = method, NumLayers = numLayers };
}
