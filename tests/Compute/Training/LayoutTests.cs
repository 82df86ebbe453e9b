using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Transformer;

namespace Megatron.Compute.Tests.Training;

/// <summary>What must not depend on the layout, or on recompute inside a layout: bits where no sum is split, else rounding.</summary>
public sealed class LayoutTests
{
    private const int Steps = 2;

    private static readonly OptimizerOptions sharded = new TrainerCase().Optimizer with { UseDistributedOptimizer = true };

    private static readonly ModelConfig experts = new TrainerCase().Model with
    {
        Moe = new MoeConfig { NumExperts = 4, FfnHiddenSize = 12, TopK = 2, PreSoftmax = true, SharedExpertFfnHiddenSize = 16 },
    };

    /// <summary>No sum is split: untied weights, no clipping (the norm is a sum over stages).</summary>
    private static readonly TrainerCase whole = new()
    {
        Model = new TrainerCase().Model with { TieWordEmbeddings = false }, Optimizer = new TrainerCase().Optimizer with { ClipGrad = 0 },
    };

    private static readonly Dictionary<string, TrainerCase> layouts = new()
    {
        ["tp2"] = new() { Ranks = 2, Tensor = 2 },
        ["tp2+sp"] = new() { Ranks = 2, Tensor = 2, SequenceParallel = true },
        ["tp2+sp overlapped"] = new() { Ranks = 2, Tensor = 2, SequenceParallel = true, TensorOverlapChunks = 3 },
        ["pp2"] = new() { Ranks = 2, Pipeline = 2 },
        ["pp4"] = new() { Ranks = 4, Pipeline = 4 },
        ["pp2 x vp2"] = new() { Ranks = 2, Pipeline = 2, Chunks = 2 },
        ["pp2 zero bubble"] = new() { Ranks = 2, Pipeline = 2, Schedule = PipelineScheduleKind.ZeroBubble },
        ["pp4 gpipe"] = new() { Ranks = 4, Pipeline = 4, Schedule = PipelineScheduleKind.GPipe },
        ["dp4 zero-1"] = new() { Ranks = 4, Optimizer = sharded, BucketElements = 3_000 },
        ["tp2+sp x pp2 x dp2 zero-1"] = new() { Ranks = 8, Tensor = 2, SequenceParallel = true, Pipeline = 2, Optimizer = sharded, BucketElements = 3_000 },
        ["cp2 ring"] = new() { Ranks = 2, Context = 2 },
        ["cp2 all-to-all"] = new() { Ranks = 2, Context = 2, Exchange = ContextExchange.AllToAll },
        ["tp2+sp x cp2 x dp2 zero-1"] = new() { Ranks = 8, Tensor = 2, SequenceParallel = true, Context = 2, Optimizer = sharded, BucketElements = 3_000 },
        ["experts: ep2"] = new() { Ranks = 2, Expert = 2, Model = experts },
        ["experts: tp2+sp x ep2 x pp2 x dp2 zero-1"] = new()
        {
            Ranks = 8, Tensor = 2, SequenceParallel = true, Expert = 2, Pipeline = 2, Model = experts, Optimizer = sharded, BucketElements = 3_000,
        },
        ["experts: cp2 x ep2"] = new() { Ranks = 2, Context = 2, Expert = 2, Model = experts },
    };

    private static readonly Dictionary<string, RecomputeOptions> recomputes = new()
    {
        ["uniform 1"] = new() { Granularity = RecomputeGranularity.Full, Method = RecomputeMethod.Uniform, NumLayers = 1 },
        ["uniform 2"] = new() { Granularity = RecomputeGranularity.Full, Method = RecomputeMethod.Uniform, NumLayers = 2 },
        ["block 1"] = new() { Granularity = RecomputeGranularity.Full, Method = RecomputeMethod.Block, NumLayers = 1 },
        ["core_attn"] = new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.CoreAttention },
        ["mlp"] = new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.Mlp },
        ["layernorm"] = new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.LayerNorm },
        ["all three"] = new()
        {
            Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.CoreAttention | RecomputeModules.Mlp | RecomputeModules.LayerNorm,
        },
    };

    private static readonly Dictionary<string, RecomputeOptions> recomputesOfExperts = new()
    {
        ["moe"] = new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.Moe },
        ["moe_act"] = new() { Granularity = RecomputeGranularity.Selective, Modules = RecomputeModules.MoeActivation },
    };

    public static TheoryData<string> Names => [.. layouts.Keys];

    public static TheoryData<string> Unsplit => [.. layouts.Where(entry => entry.Value.Pipeline == entry.Value.Ranks).Select(entry => entry.Key)];

    [Theory, MemberData(nameof(Names))]
    public void Train_EveryRecomputeMode_HasTheBitsOfKeepingEverything(string name)
    {
        var layout = WithDropout(layouts[name]);
        var expected = layout.Train(Steps);
        foreach (var (mode, recompute) in layout.Model.Moe is null ? recomputes : recomputes.Concat(recomputesOfExperts))
        {
            var actual = (layout with { Recompute = recompute }).Train(Steps);
            Assert.True(expected.HasSameBits(actual), $"{name}, recompute {mode}: other bits than without");
        }
    }

    [Theory, MemberData(nameof(Names))]
    public void Train_Twice_HasTheSameBits(string name) => layouts[name].Train(Steps).AssertSameBits(layouts[name].Train(Steps));

    [Theory, MemberData(nameof(Unsplit))]
    public void Train_DropoutAndVariableLengthsOverStages_HasTheBitsOfOneRank(string name)
    {
        var one = WithDropout(whole) with { VariableLengths = true };
        var layout = layouts[name];
        var several = one with { Ranks = layout.Ranks, Pipeline = layout.Pipeline, Chunks = layout.Chunks, Schedule = layout.Schedule };
        var (expected, actual) = (one.Train(Steps), several.Train(Steps));
        Assert.Equal(expected.Losses, actual.Losses);
        Assert.All(expected.Weights, pair => Assert.Equal(pair.Value, actual.Weights[pair.Key]));
    }

    /// <summary>By SGD: the first steps of Adam are nearly ±lr for each element, so that rounding decides where a gradient is nearly zero.</summary>
    [Theory, MemberData(nameof(Names))]
    public void Train_DropoutAndVariableLengths_AgreesWithOneRank(string name)
    {
        var layout = WithSgd(WithDropout(layouts[name])) with { VariableLengths = true };
        var one = WithSgd(WithDropout(new TrainerCase { Model = layouts[name].Model })) with { VariableLengths = true };
        one.Train(Steps).AssertClose(layout.Train(Steps), 1e-5, name);
    }

    [Theory, MemberData(nameof(Names))]
    public void Initialize_EveryLayout_DrawsTheSameWeights(string name)
    {
        var expected = new TrainerCase { Model = layouts[name].Model }.Train(steps: 0).Weights;
        Assert.All(layouts[name].Train(steps: 0).Weights, pair => Assert.Equal(expected[pair.Key], pair.Value));
    }

    private static TrainerCase WithSgd(TrainerCase layout) => layout with { Optimizer = layout.Optimizer with { Kind = OptimizerKind.Sgd } };

    private static TrainerCase WithDropout(TrainerCase layout) => layout with { Model = layout.Model with { HiddenDropout = 0.1, AttentionDropout = 0.1 } };
}
