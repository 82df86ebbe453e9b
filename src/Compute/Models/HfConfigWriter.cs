using System.Text.Json;
using System.Text.Json.Nodes;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Models;

/// <summary>
/// Writes the config.json of an exported model: that of the folder it came from, byte for byte, unless the run changed the dtype or the
/// architecture; then only the keys concerned.
/// </summary>
public static class HfConfigWriter
{
    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true };

    /// <summary>The bytes of config.json.</summary>
    /// <param name="original">config.json of the model folder.</param>
    /// <param name="model">Architecture of the run.</param>
    /// <param name="dtype">dtype of the exported weights, e.g. <c>bfloat16</c>; null keeps what stands there.</param>
    public static byte[] Write(byte[] original, ModelConfig model, string? dtype)
    {
        var before = HfConfigReader.Parse(System.Text.Encoding.UTF8.GetString(original), "config.json");
        var changed = Changes(before.Model, model);
        if (dtype is not null && dtype != before.Dtype) changed[before.Dtype is null ? "torch_dtype" : DtypeKey(original)] = dtype;
        if (changed.Count == 0) return original;
        var json = JsonNode.Parse(original)?.AsObject() ?? throw new InvalidOperationException("config.json is no object though it was read as one.");
        foreach (var (key, value) in changed) json[key] = value?.DeepClone();
        return JsonSerializer.SerializeToUtf8Bytes(json, Indented);
    }

    private static Dictionary<string, JsonNode?> Changes(ModelConfig before, ModelConfig after)
    {
        var changed = new Dictionary<string, JsonNode?>();
        void Set<T>(string key, T old, T now)
        {
            if (!EqualityComparer<T>.Default.Equals(old, now)) changed[key] = JsonValue.Create(now);
        }
        Set("num_hidden_layers", before.NumLayers, after.NumLayers);
        Set("hidden_size", before.HiddenSize, after.HiddenSize);
        Set("intermediate_size", before.FfnHiddenSize, after.FfnHiddenSize);
        Set("num_attention_heads", before.NumAttentionHeads, after.NumAttentionHeads);
        Set("num_key_value_heads", before.NumQueryGroups, after.NumQueryGroups);
        Set("head_dim", before.KvChannels, after.KvChannels);
        Set("vocab_size", before.VocabSize, after.VocabSize);
        Set("max_position_embeddings", before.MaxPositionEmbeddings, after.MaxPositionEmbeddings);
        Set("rms_norm_eps", before.NormEpsilon, after.NormEpsilon);
        Set("tie_word_embeddings", before.TieWordEmbeddings, after.TieWordEmbeddings);
        Set("attention_dropout", before.AttentionDropout, after.AttentionDropout);
        Set("rope_theta", before.Rotary.Base, after.Rotary.Base);
        if (before.Rotary with { Base = after.Rotary.Base } != after.Rotary) changed["rope_scaling"] = RopeScaling(after.Rotary);
        return changed;
    }

    private static JsonObject RopeScaling(RotaryConfig rotary) => new()
    {
        ["rope_type"] = rotary.ScalingType,
        ["factor"] = rotary.Factor,
        ["low_freq_factor"] = rotary.LowFreqFactor,
        ["high_freq_factor"] = rotary.HighFreqFactor,
        ["original_max_position_embeddings"] = rotary.OriginalMaxPositionEmbeddings,
    };

    private static string DtypeKey(byte[] original)
    {
        using var document = JsonDocument.Parse(original);
        return document.RootElement.TryGetProperty("dtype", out _) ? "dtype" : "torch_dtype";
    }
}
