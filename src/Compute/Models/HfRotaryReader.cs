using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Models;

/// <summary>
/// Reads the rotary settings: <c>rope_theta</c> beside <c>rope_scaling</c> (keys <c>rope_type</c> or <c>type</c>) in the classic layout, or one
/// object <c>rope_parameters</c> in that of transformers 5.
/// </summary>
internal static class HfRotaryReader
{
    private const double DefaultTheta = 10_000;

    private static readonly string[] supportedTypes = ["default", "linear", "llama3", "yarn"];

    /// <param name="maxPositions">max_position_embeddings, yarn's fallback for missing values.</param>
    public static RotaryConfig Read(HfConfigFields fields, int maxPositions)
    {
        var key = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
        var theta = fields.NumberOr("rope_theta", DefaultTheta);
        if (fields.Find(key) is not { } value) return new RotaryConfig { Base = theta };
        if (value.ValueKind != JsonValueKind.Object)
        {
            fields.Refuse(key, "is not an object");
            return new RotaryConfig { Base = theta };
        }
        return ReadScaling(new Section(fields, key, value), theta, maxPositions);
    }

    private static RotaryConfig ReadScaling(Section section, double theta, int maxPositions)
    {
        var type = section.Text("rope_type") ?? section.Text("type") ?? "default";
        var typeKey = section.Text("rope_type") is null ? "type" : "rope_type";
        if (!supportedTypes.Contains(type)) section.Refuse(typeKey, $"is not supported; supported are {string.Join(", ", supportedTypes)}");
        if (section.NumberOr("partial_rotary_factor", 1) != 1) section.Refuse("partial_rotary_factor", "is not supported; choose another model");
        if (section.Find("mrope_section") is not null) section.Refuse("mrope_section", "is not supported; choose another model");

        var original = (int)section.NumberOr("original_max_position_embeddings", 0);
        if (type == "llama3" && original <= 0) section.Refuse("original_max_position_embeddings", "is needed by llama3 scaling");
        if (type is "linear" or "llama3" && section.Find("factor") is null) section.Refuse("factor", $"is needed by {type} scaling");
        var impliedFactor = type == "yarn" && original > 0 ? (double)maxPositions / original : 1;
        return new RotaryConfig
        {
            Base = section.NumberOr("rope_theta", theta),
            ScalingType = type,
            Factor = section.NumberOr("factor", impliedFactor),
            LowFreqFactor = section.NumberOr("low_freq_factor", 1),
            HighFreqFactor = section.NumberOr("high_freq_factor", 4),
            OriginalMaxPositionEmbeddings = original,
            AttentionFactor = section.Number("attention_factor"),
            BetaFast = section.NumberOr("beta_fast", 32),
            BetaSlow = section.NumberOr("beta_slow", 1),
            MScale = section.Number("mscale"),
            MScaleAllDim = section.Number("mscale_all_dim"),
            Truncate = section.Find("truncate") is not { ValueKind: JsonValueKind.False },
        };
    }

    /// <summary>The nested object with paths for messages.</summary>
    private sealed record Section(HfConfigFields Fields, string Key, JsonElement Value)
    {
        public JsonElement? Find(string name) =>
            Value.TryGetProperty(name, out var found) && found.ValueKind != JsonValueKind.Null ? found : null;

        public string? Text(string name) => Find(name) is { ValueKind: JsonValueKind.String } text ? text.GetString() : null;

        public double? Number(string name) => Find(name) is { } value ? Fields.AsNumber($"{Key}.{name}", value, 0) : null;

        public double NumberOr(string name, double fallback) => Number(name) ?? fallback;

        public void Refuse(string name, string problem) => Fields.Refuse($"{Key}.{name}", Find(name), problem);
    }
}
