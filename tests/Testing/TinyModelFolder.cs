using System.Text.Json;
using System.Text.Json.Nodes;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.Transformer;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>Makes a small Qwen3-shaped Hugging Face folder with the tiny tokenizer and random weights, and data to train it on.</summary>
public static class TinyModelFolder
{
    /// <summary>Rows of the tiny tokenizer's embedding, rounded up.</summary>
    public const int VocabSize = 4096;

    /// <summary>Writes the folder.</summary>
    /// <param name="folder">Made if it is not there.</param>
    /// <param name="layers">Transformer layers.</param>
    /// <param name="hidden">Hidden size, a multiple of 32.</param>
    /// <param name="withWeights">False leaves the weights out: config and tokenizer only.</param>
    public static void Create(string folder, int layers = 2, int hidden = 64, bool withWeights = true) => Create(folder, Config(layers, hidden), withWeights);

    /// <summary>Writes a folder whose layers have 8 experts, 3 for a token, and whose vocabulary is a prime: no tensor-parallel size divides it.</summary>
    public static void CreateWithExperts(string folder, int layers, int hidden)
    {
        var config = Config(layers, hidden);
        config["architectures"] = new JsonArray("Qwen3MoeForCausalLM");
        config["model_type"] = "qwen3_moe";
        config["num_experts"] = 8;
        config["num_experts_per_tok"] = 3;
        config["moe_intermediate_size"] = hidden / 2;
        config["norm_topk_prob"] = true;
        config["decoder_sparse_step"] = 1;
        config["mlp_only_layers"] = new JsonArray();
        config["router_aux_loss_coef"] = 0.01;
        config["vocab_size"] = 4099;
        Create(folder, config, withWeights: true);
    }

    /// <summary>Writes messages rows: small sums, asked and answered.</summary>
    public static void WriteRows(string path, int count)
    {
        using var file = new StreamWriter(path);
        for (var i = 0; i < count; i++)
        {
            var (a, b) = (i % 17, i / 17 % 19);
            file.WriteLine(JsonSerializer.Serialize(new
            {
                messages = new[] { new { role = "user", content = $"What is {a} plus {b}?" }, new { role = "assistant", content = $"{a} plus {b} is {a + b}." } },
            }));
        }
    }

    private static void Create(string folder, JsonObject architecture, bool withWeights)
    {
        Directory.CreateDirectory(folder);
        var config = JsonSerializer.SerializeToUtf8Bytes(architecture);
        if (withWeights) HfFolderWriter.WriteWeights(folder, RandomWeights(config), long.MaxValue);
        HfFolderWriter.WriteSideFiles(folder, new HfSideFiles
        {
            Config = config,
            GenerationConfig = """{"do_sample": false}"""u8.ToArray(),
            TokenizerFolder = Repository.Asset("tokenizers", "tiny"),
        });
    }

    /// <summary>Multiplies one tensor of a folder's <c>model.safetensors</c>.</summary>
    public static void Scale(string folder, string name, double factor)
    {
        var path = Path.Combine(folder, "model.safetensors");
        using var scope = NewDisposeScope();
        var tensors = new List<(SafetensorsSpec Spec, Tensor Values)>();
        using (var file = SafetensorsFile.Open(path))
            foreach (var entry in file.Tensors.Values) tensors.Add((new SafetensorsSpec(entry.Name, entry.DType, entry.Shape), file.ReadTensor(entry.Name)));
        using var writer = new SafetensorsWriter(path, [.. tensors.Select(tensor => tensor.Spec)], SafetensorsWriter.PyTorchFormat);
        foreach (var (spec, values) in tensors) writer.Write(spec.Name == name ? values * factor : values);
        writer.Finish();
    }

    private static JsonObject Config(int layers, int hidden) => new()
    {
        ["architectures"] = new JsonArray("Qwen3ForCausalLM"),
        ["model_type"] = "qwen3",
        ["hidden_size"] = hidden,
        ["intermediate_size"] = 3 * hidden,
        ["num_hidden_layers"] = layers,
        ["num_attention_heads"] = 4,
        ["num_key_value_heads"] = 2,
        ["head_dim"] = hidden / 4,
        ["hidden_act"] = "silu",
        ["max_position_embeddings"] = 512,
        ["rms_norm_eps"] = 1e-6,
        ["rope_theta"] = 10000.0,
        ["tie_word_embeddings"] = true,
        ["attention_bias"] = false,
        ["vocab_size"] = VocabSize,
        ["torch_dtype"] = "float32",
    };

    private static IReadOnlyList<HfTensor> RandomWeights(byte[] config)
    {
        TorchTestSetup.EnsureLoaded();
        var modelConfig = HfConfigReader.Parse(System.Text.Encoding.UTF8.GetString(config), "config.json").Model;
        var options = new ModelOptions
        {
            Dtype = float32,
            Device = CPU,
            Seed = 7,
            Recompute = RecomputeOptions.Off,
            Attention = new AttentionOptions { Backend = AttentionBackend.Auto, SoftmaxInFp32 = true, QueryKeyLayerScaling = false },
            Moe = MoeOptions.Plain,
        };
        using var parallel = ParallelState.SingleRank();
        using var model = new GptModel(modelConfig, options, parallel, StageLayout.Whole(modelConfig));
        ModelInitializer.Initialize(model.Parameters, modelConfig, seed: 7);
        var tensors = new List<HfTensor>();
        foreach (var weight in WeightBlock.OfParameters(model.Parameters, withDuplicates: false))
        {
            var values = weight.Values.clone().view(weight.Block.Shape);
            tensors.Add(new HfTensor(new SafetensorsSpec(weight.Block.Name, SafetensorsDType.F32, weight.Block.Shape), () => values));
        }
        return [.. tensors.OrderBy(tensor => tensor.Spec.Name, StringComparer.Ordinal)];
    }
}
