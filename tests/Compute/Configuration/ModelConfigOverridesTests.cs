using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tests.Configuration;

public sealed class ModelConfigOverridesTests
{
    private static readonly ModelConfig Hf = new()
    {
        Architecture = "LlamaForCausalLM", ModelType = "llama", NumLayers = 4, HiddenSize = 64, FfnHiddenSize = 128, NumAttentionHeads = 4,
        NumQueryGroups = 4, KvChannels = 16, VocabSize = 320, MaxPositionEmbeddings = 256, NormEpsilon = 1e-5, TieWordEmbeddings = false,
        AddQkvBias = false, QkLayerNorm = false, Rotary = new RotaryConfig { Base = 5e5, ScalingType = "linear", Factor = 2 },
    };

    [Fact]
    public void Apply_NothingGiven_KeepsWhatTheModelSays() => Assert.Equal(Hf, ModelConfigOverrides.Apply(Hf, new TrainingConfig()));

    [Fact]
    public void Apply_ValuesGiven_Win()
    {
        var config = new TrainingConfig
        {
            NumLayers = 2, NormEpsilon = 1e-6, UntieEmbeddingsAndOutputWeights = false, AddQkvBias = true, QkLayernorm = true, RotaryBase = 1e4,
            AttentionDropout = 0.1, HiddenDropout = 0.2, PaddedVocabSize = 512, InitMethodStd = 0.006,
        };
        var model = ModelConfigOverrides.Apply(Hf, config);
        Assert.Equal(2, model.NumLayers);
        Assert.Equal(1e-6, model.NormEpsilon);
        Assert.True(model.TieWordEmbeddings);
        Assert.True(model.AddQkvBias);
        Assert.True(model.QkLayerNorm);
        Assert.Equal(1e4, model.Rotary.Base);
        Assert.Equal("linear", model.Rotary.ScalingType);
        Assert.Equal(0.1, model.AttentionDropout);
        Assert.Equal(0.2, model.HiddenDropout);
        Assert.Equal(512, model.VocabSize);
        Assert.Equal(0.006, model.InitializerRange);
    }

    [Fact]
    public void Apply_HiddenSizeGiven_HeadSizeFollowsOnlyWhereItFollowedBefore()
    {
        var config = new TrainingConfig { HiddenSize = 128 };
        Assert.Equal(32, ModelConfigOverrides.Apply(Hf, config).KvChannels);
        Assert.Equal(128, ModelConfigOverrides.Apply(Hf with { KvChannels = 128 }, config).KvChannels);
    }

    [Fact]
    public void Apply_HeadsGivenWithoutGroups_ModelWithoutGroupedHeadsHasNone() =>
        Assert.Equal(8, ModelConfigOverrides.Apply(Hf, new TrainingConfig { NumAttentionHeads = 8 }).NumQueryGroups);

    [Theory]
    [InlineData("rope_type")]
    [InlineData("type")]
    public void Apply_RopeScalingGiven_ReplacesTheModelsScaling(string key)
    {
        var config = new TrainingConfig { RopeScaling = $$"""{"{{key}}": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}""" };
        var rotary = ModelConfigOverrides.Apply(Hf, config).Rotary;
        Assert.Equal(new RotaryConfig { Base = 5e5, ScalingType = "yarn", Factor = 4, OriginalMaxPositionEmbeddings = 32768 }, rotary);
    }

    [Theory]
    [InlineData("""{"rope_type": "dynamic", "factor": 2}""", "--rope_scaling has rope_type = dynamic, which is not supported; use default, linear, llama3 or yarn.")]
    [InlineData("""{"rope_type": "linear"}""", "--rope_scaling has rope_type = linear without factor; add it.")]
    [InlineData("""{"rope_type": "linear", "factor": 0.5}""", "--rope_scaling has factor = 0.5; give 1 or more.")]
    [InlineData("""{"rope_type": "linear", "factor": "2"}""", "--rope_scaling has factor = \"2\"; give a finite number.")]
    [InlineData("""{"rope_type": "linear", "factor": 2, "long_factor": [1]}""", "--rope_scaling has the key long_factor, which is not supported; remove it if it changes nothing.")]
    [InlineData("""{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1, "original_max_position_embeddings": 8192}""",
        "--rope_scaling has high_freq_factor = 1, not above low_freq_factor = 4; correct them.")]
    [InlineData("""{"partial_rotary_factor": 0.5}""", "--rope_scaling has partial_rotary_factor = 0.5, which is not supported; use a model that rotates all channels.")]
    public void Apply_RopeScalingThatCannotBeUsed_IsRefused(string json, string message)
    {
        var failure = Assert.Throws<ConfigException>(() => ModelConfigOverrides.Apply(Hf, new TrainingConfig { RopeScaling = json }));
        Assert.Equal(new ConfigError("MODEL002", message), Assert.Single(failure.Errors));
    }

    [Fact]
    public void Apply_ExpertOptionsGiven_Win()
    {
        var hf = Hf with { Moe = new MoeConfig { NumExperts = 8, FfnHiddenSize = 32, TopK = 4, PreSoftmax = true, SharedExpertFfnHiddenSize = 64 } };
        var moe = ModelConfigOverrides.Apply(hf, new TrainingConfig { MoeRouterTopk = 2, MoeSharedExpertIntermediateSize = 0 }).Moe;
        Assert.Equal(hf.Moe with { TopK = 2, SharedExpertFfnHiddenSize = null }, moe);
    }
}
