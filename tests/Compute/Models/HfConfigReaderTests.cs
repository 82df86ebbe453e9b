using System.Text.Json.Nodes;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Models;

/// <summary>config.json in both layouts, and every field that is refused.</summary>
public sealed class HfConfigReaderTests
{
    private const string Classic = """
        {
          "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
          "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
          "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
          "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
          "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
        }
        """;

    private const string Transformers5 = """
        {
          "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "dtype": "bfloat16", "head_dim": 64, "hidden_act": "silu",
          "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
          "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "vocab_size": 128256,
          "rope_parameters": { "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                               "rope_theta": 500000.0, "rope_type": "llama3" }
        }
        """;

    [Fact]
    public void Parse_ClassicQwen2_ReadsEveryNumber()
    {
        var (model, dtype) = HfConfigReader.Parse(Classic, "config.json");
        Assert.Equal("bfloat16", dtype);
        Assert.Equal(
            new ModelConfig
            {
                Architecture = "Qwen2ForCausalLM", ModelType = "qwen2", NumLayers = 24, HiddenSize = 896, FfnHiddenSize = 4864, NumAttentionHeads = 14,
                NumQueryGroups = 2, KvChannels = 64, VocabSize = 151936, MaxPositionEmbeddings = 32768, NormEpsilon = 1e-6, TieWordEmbeddings = true,
                AddQkvBias = true, QkLayerNorm = false, Rotary = new RotaryConfig { Base = 1_000_000 },
            },
            model);
    }

    [Fact]
    public void Parse_Transformers5Llama_ReadsRopeParametersAndDtype()
    {
        var (model, dtype) = HfConfigReader.Parse(Transformers5, "config.json");
        Assert.Equal("bfloat16", dtype);
        Assert.False(model.AddQkvBias);
        Assert.Equal(64, model.KvChannels);
        Assert.Equal(
            new RotaryConfig
            {
                Base = 500_000, ScalingType = "llama3", Factor = 32, LowFreqFactor = 1, HighFreqFactor = 4, OriginalMaxPositionEmbeddings = 8192,
            },
            model.Rotary);
    }

    [Theory]
    [InlineData("""{"rope_type": "linear", "factor": 2.0}""", "linear", 2.0)]
    [InlineData("""{"type": "linear", "factor": 2.0}""", "linear", 2.0)]
    [InlineData("""{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}""", "yarn", 4.0)]
    [InlineData("""{"rope_type": "yarn", "original_max_position_embeddings": 8192}""", "yarn", 4.0)]
    [InlineData("""{"rope_type": "default"}""", "default", 1.0)]
    [InlineData("null", "default", 1.0)]
    public void Parse_RopeScaling_KnowsBothKeys(string ropeScaling, string type, double factor)
    {
        var (model, _) = HfConfigReader.Parse(With("rope_scaling", ropeScaling), "config.json");
        Assert.Equal((type, factor, 1e6), (model.Rotary.ScalingType, model.Rotary.Factor, model.Rotary.Base));
    }

    [Theory]
    [InlineData("qwen2-moe", true, 48)]
    [InlineData("qwen3-moe", false, null)]
    public void ReadFolder_GoldenMoe_ReadsExperts(string name, bool preSoftmax, int? sharedSize)
    {
        var moe = HfConfigReader.ReadFolder(Repository.Asset("golden", name)).Model.Moe;
        Assert.NotNull(moe);
        Assert.Equal((8, 24, preSoftmax, sharedSize), (moe.NumExperts, moe.FfnHiddenSize, moe.PreSoftmax, moe.SharedExpertFfnHiddenSize));
        Assert.True(moe.IsMoeLayer(0));
    }

    [Fact]
    public void Parse_LocalExpertsKey_IsTheNumberOfExperts()
    {
        var root = Object(File.ReadAllText(Repository.Asset("golden", "qwen3-moe", "config.json")));
        root["num_local_experts"] = root["num_experts"]?.DeepClone();
        root.Remove("num_experts");
        Assert.Equal(8, HfConfigReader.Parse(root.ToJsonString(), "config.json").Model.Moe?.NumExperts);
    }

    [Theory]
    [InlineData("hidden_act", "\"gelu\"")]
    [InlineData("mlp_bias", "true")]
    [InlineData("use_qk_norm", "true")]
    [InlineData("partial_rotary_factor", "0.5")]
    [InlineData("attn_logit_softcapping", "50.0")]
    [InlineData("final_logit_softcapping", "30.0")]
    [InlineData("quantization_config", "{\"quant_method\":\"gptq\"}")]
    [InlineData("logits_scaling", "8")]
    [InlineData("layer_types", "[\"full_attention\",\"sliding_attention\"]")]
    [InlineData("rope_scaling.rope_type", "\"longrope\"", "rope_scaling", "{\"rope_type\": \"longrope\", \"factor\": 4}")]
    [InlineData("rope_scaling.type", "\"dynamic\"", "rope_scaling", "{\"type\": \"dynamic\", \"factor\": 4}")]
    [InlineData("rope_scaling.factor", "null", "rope_scaling", "{\"rope_type\": \"linear\"}")]
    [InlineData("rope_scaling.original_max_position_embeddings", "null", "rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8}")]
    [InlineData("hidden_size", "\"wide\"")]
    [InlineData("num_hidden_layers", "0")]
    [InlineData("num_hidden_layers", "2.5")]
    [InlineData("num_key_value_heads", "3")]
    [InlineData("head_dim", "63")]
    [InlineData("tie_word_embeddings", "\"yes\"")]
    public void Rejects_Value(string named, string value, string? key = null, string? json = null)
    {
        var error = Assert.Throws<ConfigException>(() => HfConfigReader.Parse(With(key ?? named, json ?? value), "folder/config.json"));
        Assert.Contains(error.Errors, entry => entry.Message.StartsWith($"folder/config.json: {named} = {value} ", StringComparison.Ordinal));
    }

    [Fact]
    public void Rejects_SlidingWindowInUse()
    {
        var root = Object(Classic);
        root["use_sliding_window"] = true;
        var error = Assert.Throws<ConfigException>(() => HfConfigReader.Parse(root.ToJsonString(), "config.json"));
        Assert.Contains("sliding_window = 32768 is used from layer 21 on", Assert.Single(error.Errors).Message);
        root["max_window_layers"] = 24;
        HfConfigReader.Parse(root.ToJsonString(), "config.json");
    }

    [Theory]
    [InlineData("LlamaForCausalLM"), InlineData("Qwen3ForCausalLM")]
    public void Rejects_AttentionBias_OutsideQwen2(string architecture)
    {
        var root = Object(Classic);
        root["architectures"] = new JsonArray(architecture);
        root["attention_bias"] = true;
        var error = Assert.Throws<ConfigException>(() => HfConfigReader.Parse(root.ToJsonString(), "config.json"));
        Assert.Contains("attention_bias = true is not supported", Assert.Single(error.Errors).Message);
    }

    [Fact]
    public void Rejects_EverythingAtOnce()
    {
        var root = Object(Classic);
        root["hidden_act"] = "gelu";
        root["mlp_bias"] = true;
        root.Remove("vocab_size");
        root["quantization_config"] = new JsonObject();
        var error = Assert.Throws<ConfigException>(() => HfConfigReader.Parse(root.ToJsonString(), "config.json"));
        Assert.Equal(4, error.Errors.Count);
    }

    [Theory]
    [InlineData("""{"architectures": ["MistralForCausalLM"]}""", "MODEL003")]
    [InlineData("""{"architectures": []}""", "MODEL002")]
    [InlineData("{}", "MODEL002")]
    [InlineData("[1]", "MODEL002")]
    [InlineData("{\"architectures\"", "MODEL002")]
    public void Rejects_File(string json, string code) =>
        Assert.Equal(code, Assert.Single(Assert.Throws<ConfigException>(() => HfConfigReader.Parse(json, "config.json")).Errors).Code);

    [Fact]
    public void Rejects_FolderWithoutConfig()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal("MODEL001", Assert.Single(Assert.Throws<ConfigException>(() => HfConfigReader.ReadFolder(folder.Root)).Errors).Code);
    }

    private static string With(string key, string json)
    {
        var root = Object(Classic);
        root[key] = JsonNode.Parse(json);
        return root.ToJsonString();
    }

    private static JsonObject Object(string json) => JsonNode.Parse(json)?.AsObject() ?? throw new InvalidOperationException("not an object");
}
