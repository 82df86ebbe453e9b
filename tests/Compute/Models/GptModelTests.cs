using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Models;

/// <summary>A model as a whole: stages, evaluation, 16-bit dtypes, refusals. Gradients are checked in LayerGradientTests.</summary>
public sealed class GptModelTests
{
    [Theory]
    [InlineData(false), InlineData(true)]
    public void ForwardBackward_TwoStages_SameBitsAsOne(bool tied)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { NumLayers = 3, TieWordEmbeddings = tied };
        using var context = Context(config, isTraining: true);
        using var whole = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        using var first = Build(config, new StageLayout(0, 2, HasEmbedding: true, HasHead: false), ScalarType.Float32);
        using var last = Build(config, new StageLayout(2, 3, HasEmbedding: false, HasHead: true), ScalarType.Float32);
        using var gradients = TestModels.AttachGradients([.. whole.Parameters, .. first.Parameters, .. last.Parameters]);

        using var saved = new Saved(context);
        var expectedLoss = whole.ForwardStage(null, saved);
        Assert.Null(whole.BackwardInput(null, saved));
        whole.BackwardWeight(saved);

        using var firstSaved = new Saved(context);
        using var lastSaved = new Saved(context);
        var hidden = first.ForwardStage(null, firstSaved);
        Assert.Equal(first.BoundaryShape(context.Batch), hidden.shape);
        var loss = last.ForwardStage(hidden, lastSaved);
        Assert.Null(first.BackwardInput(last.BackwardInput(null, lastSaved), firstSaved));
        last.BackwardWeight(lastSaved);
        first.BackwardWeight(firstSaved);

        Assert.Equal(expectedLoss.item<float>(), loss.item<float>());
        if (tied)
        {
            Assert.True(last.TiedWeight?.Traits.IsSharedDuplicate);
            first.TiedWeight?.MainGrad.add_(last.TiedWeight?.MainGrad ?? throw new InvalidOperationException("no tied weight"));
        }
        var parts = first.Parameters.Concat(last.Parameters.Where(parameter => !parameter.Traits.IsSharedDuplicate)).ToArray();
        Assert.Equal(whole.Parameters.Select(parameter => parameter.Name), parts.Select(parameter => parameter.Name));
        for (var i = 0; i < parts.Length; i++)
            LayerCheck.Compare(parts[i].Name, parts[i].MainGrad, whole.Parameters[i].MainGrad, tolerance: tied && i == 0 ? 1e-6 : 0);
    }

    [Fact]
    public void ForwardStage_Evaluation_KeepsNothingAndEqualsTraining()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config;
        using var model = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        using var gradients = TestModels.AttachGradients(model.Parameters);
        using var training = Context(config, isTraining: true);
        using var evaluation = Context(config, isTraining: false);
        using var trainingSaved = new Saved(training);
        using var evaluationSaved = new Saved(evaluation);
        Assert.Equal(model.ForwardStage(null, trainingSaved).item<float>(), model.ForwardStage(null, evaluationSaved).item<float>());
        Assert.Equal(0, evaluationSaved.SizeBytes);
    }

    /// <summary>Eight units of rounding (2⁻⁸ for bf16, 2⁻¹¹ for fp16): errors of the two layers' rounded activations add up.</summary>
    [Theory]
    [InlineData(false), InlineData(true)]
    public void Backward_LayerByLayer_SameBitsAsItsHalves(bool tied)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { NumLayers = 3, TieWordEmbeddings = tied };
        using var context = Context(config, isTraining: true);
        using var halves = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        using var whole = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        using var gradients = TestModels.AttachGradients([.. halves.Parameters, .. whole.Parameters]);

        using var saved = new Saved(context);
        halves.ForwardStage(null, saved);
        Assert.Null(halves.BackwardInput(null, saved));
        halves.BackwardWeight(saved);
        whole.ForwardStage(null, saved);
        Assert.Null(whole.Backward(null, saved));

        Assert.Equal(0, saved.SizeBytes);
        foreach (var (expected, actual) in halves.Parameters.Zip(whole.Parameters))
            Assert.True(actual.MainGrad.equal(expected.MainGrad).all().item<bool>(), actual.Name);
    }

    [Theory]
    [InlineData(ScalarType.BFloat16, false, 8 / 256.0)]
    [InlineData(ScalarType.Float16, false, 8 / 2048.0)]
    [InlineData(ScalarType.Float16, true, 8 / 2048.0)]
    public void ForwardBackward_SixteenBits_CloseToFp32(ScalarType dtype, bool queryKeyLayerScaling, double tolerance)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { QkLayerNorm = true, AddQkvBias = true };
        var options = TestModels.Options(dtype) with { Attention = TestModels.Auto with { QueryKeyLayerScaling = queryKeyLayerScaling } };
        using var context = Context(config, isTraining: true);
        using var narrow = new GptModel(config, options, ParallelState.SingleRank(), StageLayout.Whole(config));
        using var wide = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        for (var i = 0; i < wide.Parameters.Count; i++)
        {
            narrow.Parameters[i].Data.copy_(wide.Parameters[i].Data);
            wide.Parameters[i].Data.copy_(narrow.Parameters[i].Data);
        }
        using var gradients = TestModels.AttachGradients([.. narrow.Parameters, .. wide.Parameters]);
        var losses = new List<float>();
        foreach (var model in (GptModel[])[wide, narrow])
        {
            using var saved = new Saved(context);
            losses.Add(model.ForwardStage(null, saved).item<float>());
            Assert.Null(model.BackwardInput(null, saved));
            model.BackwardWeight(saved);
        }
        Assert.Equal(losses[0], losses[1], tolerance * losses[0]);
        for (var i = 0; i < wide.Parameters.Count; i++)
            LayerCheck.Compare(wide.Parameters[i].Name, narrow.Parameters[i].MainGrad, wide.Parameters[i].MainGrad, tolerance);
    }

    [Fact]
    public void ForwardStage_SampleLongerThanPositions_NamesBoth()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var config = TestModels.Config with { MaxPositionEmbeddings = 8 };
        using var model = Build(config, StageLayout.Whole(config), ScalarType.Float32);
        using var context = Context(config, isTraining: true);
        using var saved = new Saved(context);
        var error = Assert.Throws<ConfigException>(() => model.ForwardStage(null, saved));
        Assert.Contains("9 tokens, but the model has max_position_embeddings = 8", error.Message);
    }

    private static ForwardContext Context(ModelConfig config, bool isTraining)
    {
        var batch = TestBatches.Random(new Random(11), config.VocabSize, [9, 7]);
        return new ForwardContext(batch, CPU, step: 0, isTraining, lossFactor: 1.0 / batch.NumTargetTokens, auxiliaryLossFactor: 1);
    }

    private static GptModel Build(ModelConfig config, StageLayout stage, ScalarType dtype)
    {
        var model = new GptModel(config, TestModels.Options(dtype), ParallelState.SingleRank(), stage);
        ModelInitializer.Initialize(model.Parameters, config with { InitializerRange = 0.2 }, seed: 5);
        return model;
    }
}
