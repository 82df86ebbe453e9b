using System.Text.Json.Nodes;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.Training;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Moe;

/// <summary>Which layers have experts, what their tensors are called, and what options reach them.</summary>
public sealed class MoeModelTests
{
    private static readonly MoeConfig Experts = new() { NumExperts = 5, FfnHiddenSize = 6, TopK = 2, PreSoftmax = true, SharedExpertFfnHiddenSize = 9 };

    [Theory]
    [InlineData(1, new int[0], new[] { 0, 1, 2, 3, 4, 5 })]
    [InlineData(2, new int[0], new[] { 1, 3, 5 })]
    [InlineData(2, new[] { 3 }, new[] { 1, 5 })]
    [InlineData(1, new[] { 0, 5 }, new[] { 1, 2, 3, 4 })]
    public void GptModel_SparseStepAndMlpOnlyLayers_ExpertsWhereHuggingFaceHasThem(int sparseStep, int[] mlpOnlyLayers, int[] moeLayers)
    {
        using var leaks = LeakCheck.Start();
        var config = TestModels.Config with { NumLayers = 6, Moe = Experts with { DecoderSparseStep = sparseStep, MlpOnlyLayers = mlpOnlyLayers } };
        using var model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
        var blocks = model.Parameters.SelectMany(parameter => parameter.Blocks).ToDictionary(block => block.Name, block => block.GlobalShape);
        var expected = HfTensorCatalog.Of(config);
        Assert.Equal(expected.Select(tensor => tensor.Name), blocks.Keys.Order(StringComparer.Ordinal));
        Assert.All(expected, tensor => Assert.Equal(tensor.Shape, blocks[tensor.Name]));
        for (var layer = 0; layer < config.NumLayers; layer++)
        {
            Assert.Equal(moeLayers.Contains(layer), blocks.ContainsKey($"model.layers.{layer}.mlp.experts.4.up_proj.weight"));
            Assert.Equal(moeLayers.Contains(layer), blocks.ContainsKey($"model.layers.{layer}.mlp.shared_expert_gate.weight"));
            Assert.Equal(!moeLayers.Contains(layer), blocks.ContainsKey($"model.layers.{layer}.mlp.up_proj.weight"));
        }
        Assert.All(model.Parameters, parameter => Assert.Equal(parameter.Name.Contains(".experts.", StringComparison.Ordinal), parameter.Traits.IsExpert));
    }

    [Fact]
    public void GptModel_Evaluation_RecordsNothing()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { Moe = Experts };
        using var model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
        ModelInitializer.Initialize(model.Parameters, config, seed: 1);
        var batch = TestBatches.Random(new Random(1), config.VocabSize, [7, 2]);
        using var context = new ForwardContext(batch, CPU, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 1);
        using var saved = new Saved(context);
        model.ForwardStage(null, saved);
        Assert.Equal(0, saved.SizeBytes);
        Assert.Equal(0, Assert.IsType<RoutingStatistics>(model.Routing).TokensPerExpert.sum().item<long>());
    }

    [Fact]
    public void RunSettings_MoeOptions_ReachTheModel()
    {
        TorchTestSetup.EnsureLoaded();
        var config = new TrainingConfig { TorchDtype = "bfloat16", RecomputeGranularity = "none" };
        Assert.Equal(MoeOptions.Plain with { LoadBalancing = LoadBalancing.AuxiliaryLoss }, RunSettings.Model(config, CPU).Moe);
        var options = RunSettings.Model(
            config with
            {
                MoeRouterLoadBalancingType = "seq_aux_loss", MoeAuxLossCoeff = 0.25, MoeZLossCoeff = 0.5, MoeRouterDtype = "none", MoeLayerRecompute = true,
            },
            CPU);
        Assert.Equal(
            new MoeOptions { LoadBalancing = LoadBalancing.SequenceAuxiliaryLoss, AuxLossCoeff = 0.25, ZLossCoeff = 0.5, RouterDtype = null }, options.Moe);
        Assert.Equal((RecomputeGranularity.Selective, RecomputeModules.Moe), (options.Recompute.Granularity, options.Recompute.Modules));
        var named = RunSettings.Model(config with { RecomputeGranularity = "selective", RecomputeModules = ["moe", "moe_act"] }, CPU);
        Assert.Equal(RecomputeModules.Moe | RecomputeModules.MoeActivation, named.Recompute.Modules);
    }

    [Theory]
    [InlineData(null, null, 0.001)]
    [InlineData(null, 0.3, 0.3)]
    [InlineData(0.0, 0.3, 0.0)]
    public void Resolve_AuxLossCoeff_OptionThenConfigJson(double? option, double? inConfigJson, double expected)
    {
        var folder = Repository.Asset("golden", "qwen3-moe");
        var json = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "config.json"))) as JsonObject ?? throw new InvalidOperationException("no object");
        json["router_aux_loss_coef"] = inConfigJson ?? 0.001;
        var hf = HfConfigReader.Parse(json.ToJsonString(), "config.json");
        var config = new TrainingConfig { MoeAuxLossCoeff = option, Template = "qwen3" };
        Assert.Equal(expected, RunPreparation.Resolve(config, hf, hf.Model, folder).MoeAuxLossCoeff);
    }
}
