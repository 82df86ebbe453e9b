using Megatron.Compute.Configuration;

namespace Megatron.Compute.Training;

/// <summary>Published model shapes that the benchmark measures; weights are random.</summary>
public static class BenchmarkPresets
{
    /// <summary>Names in the order of the documentation.</summary>
    public static IReadOnlyList<string> Names { get; } = ["qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "llama3.2-1b", "llama3-8b", "qwen3-30b-a3b"];

    /// <summary>The shape of a preset; <c>name:layers</c> keeps only so many layers.</summary>
    /// <exception cref="ConfigException">BENCH001: no such preset.</exception>
    public static ModelConfig Get(string preset)
    {
        var parts = preset.Split(':', 2);
        var model = parts[0] switch
        {
            "qwen3-0.6b" => Qwen3(layers: 28, hidden: 1024, ffn: 3072, heads: 16, tied: true),
            "qwen3-1.7b" => Qwen3(layers: 28, hidden: 2048, ffn: 6144, heads: 16, tied: true),
            "qwen3-4b" => Qwen3(layers: 36, hidden: 2560, ffn: 9728, heads: 32, tied: true),
            "llama3.2-1b" => Llama(layers: 16, hidden: 2048, ffn: 8192, headDim: 64, tied: true),
            "llama3-8b" => Llama(layers: 32, hidden: 4096, ffn: 14336, headDim: 128, tied: false),
            "qwen3-30b-a3b" => Qwen3(layers: 48, hidden: 2048, ffn: 6144, heads: 32, tied: false) with
            {
                Architecture = "Qwen3MoeForCausalLM", ModelType = "qwen3_moe", NumQueryGroups = 4,
                Moe = new MoeConfig { NumExperts = 128, FfnHiddenSize = 768, TopK = 8, PreSoftmax = false },
            },
            _ => throw new ConfigException("BENCH001", $"preset = {preset} is not known; choose {string.Join(", ", Names)}."),
        };
        if (parts.Length == 1) return model;
        return int.TryParse(parts[1], out var layers) && layers > 0 && layers <= model.NumLayers
            ? model with { NumLayers = layers }
            : throw new ConfigException("BENCH001", $"preset = {preset}: the number after the colon is the layers to keep; choose 1 to {model.NumLayers}.");
    }

    private static ModelConfig Qwen3(int layers, int hidden, int ffn, int heads, bool tied) => new()
    {
        Architecture = "Qwen3ForCausalLM", ModelType = "qwen3", NumLayers = layers, HiddenSize = hidden, FfnHiddenSize = ffn, NumAttentionHeads = heads,
        NumQueryGroups = 8, KvChannels = 128, VocabSize = 151936, MaxPositionEmbeddings = 40960, NormEpsilon = 1e-6, TieWordEmbeddings = tied,
        AddQkvBias = false, QkLayerNorm = true, Rotary = new RotaryConfig { Base = 1e6 },
    };

    private static ModelConfig Llama(int layers, int hidden, int ffn, int headDim, bool tied) => new()
    {
        Architecture = "LlamaForCausalLM", ModelType = "llama", NumLayers = layers, HiddenSize = hidden, FfnHiddenSize = ffn, NumAttentionHeads = 32,
        NumQueryGroups = 8, KvChannels = headDim, VocabSize = 128256, MaxPositionEmbeddings = 131072, NormEpsilon = 1e-5, TieWordEmbeddings = tied,
        AddQkvBias = false, QkLayerNorm = false, Rotary = new RotaryConfig { Base = 5e5 },
    };
}
