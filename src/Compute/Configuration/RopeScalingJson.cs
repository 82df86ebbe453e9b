using System.Globalization;
using System.Text.Json;

namespace Megatron.Compute.Configuration;

/// <summary>
/// Reads the object <c>rope_scaling</c> (transformers 5: <c>rope_parameters</c>) of a Hugging Face <c>config.json</c> or of the option with
/// that name. The kind stands in <c>rope_type</c> or, in older files, in <c>type</c>.
/// </summary>
public static class RopeScalingJson
{
    private static readonly string[] Known =
    [
        "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor",
    ];

    /// <summary>Lays the scaling over <paramref name="rotary"/>.</summary>
    /// <param name="scaling">JSON object.</param>
    /// <param name="rotary">Gives what the object does not say.</param>
    /// <param name="where">Named in messages, e.g. the path of the file and the key.</param>
    /// <exception cref="ConfigException">MODEL002: a kind or key that changes the arithmetic and is not known, a missing or wrong
    /// number.</exception>
    public static RotaryConfig Apply(JsonElement scaling, RotaryConfig rotary, string where)
    {
        var kind = Kind(scaling, where);
        var unknown = scaling.EnumerateObject().Select(property => property.Name).FirstOrDefault(name => !Known.Contains(name));
        if (unknown is not null) throw Refuse($"{where} has the key {unknown}, which is not supported; remove it if it changes nothing.");
        if (Number(scaling, "partial_rotary_factor", where) is { } share && share != 1)
            throw Refuse($"{where} has partial_rotary_factor = {Text(share)}, which is not supported; use a model that rotates all channels.");
        var result = rotary with
        {
            Base = Number(scaling, "rope_theta", where) ?? rotary.Base,
            ScalingType = kind,
            Factor = Number(scaling, "factor", where) ?? rotary.Factor,
            LowFreqFactor = Number(scaling, "low_freq_factor", where) ?? rotary.LowFreqFactor,
            HighFreqFactor = Number(scaling, "high_freq_factor", where) ?? rotary.HighFreqFactor,
            OriginalMaxPositionEmbeddings = Whole(scaling, "original_max_position_embeddings", where) ?? rotary.OriginalMaxPositionEmbeddings,
            AttentionFactor = Number(scaling, "attention_factor", where) ?? rotary.AttentionFactor,
            BetaFast = Number(scaling, "beta_fast", where) ?? rotary.BetaFast,
            BetaSlow = Number(scaling, "beta_slow", where) ?? rotary.BetaSlow,
            MScale = Number(scaling, "mscale", where) ?? rotary.MScale,
            MScaleAllDim = Number(scaling, "mscale_all_dim", where) ?? rotary.MScaleAllDim,
            Truncate = Flag(scaling, "truncate", where) ?? rotary.Truncate,
        };
        Require(scaling, result, where);
        return result;
    }

    private static string Kind(JsonElement scaling, string where)
    {
        var named = scaling.TryGetProperty("rope_type", out var element) || scaling.TryGetProperty("type", out element);
        if (!named) return "default";
        var kind = element.ValueKind == JsonValueKind.String ? element.GetString() : element.GetRawText();
        if (kind is "default" or "linear" or "llama3" or "yarn") return kind;
        throw Refuse($"{where} has rope_type = {kind}, which is not supported; use default, linear, llama3 or yarn.");
    }

    private static void Require(JsonElement scaling, RotaryConfig rotary, string where)
    {
        string[] needed = rotary.ScalingType switch
        {
            "linear" => ["factor"],
            "llama3" => ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            "yarn" => ["factor"],
            _ => [],
        };
        var missing = needed.FirstOrDefault(key => !scaling.TryGetProperty(key, out _));
        if (missing is not null) throw Refuse($"{where} has rope_type = {rotary.ScalingType} without {missing}; add it.");
        if (!(rotary.Factor >= 1)) throw Refuse($"{where} has factor = {Text(rotary.Factor)}; give 1 or more.");
        if (!(rotary.Base > 1)) throw Refuse($"{where} has rope_theta = {Text(rotary.Base)}; give a number above 1.");
        if (rotary.ScalingType == "llama3" && !(rotary.HighFreqFactor > rotary.LowFreqFactor))
            throw Refuse($"{where} has high_freq_factor = {Text(rotary.HighFreqFactor)}, not above low_freq_factor = {Text(rotary.LowFreqFactor)}; correct them.");
    }

    private static double? Number(JsonElement scaling, string key, string where)
    {
        if (!scaling.TryGetProperty(key, out var element) || element.ValueKind == JsonValueKind.Null) return null;
        if (element.ValueKind == JsonValueKind.Number && element.TryGetDouble(out var number) && double.IsFinite(number)) return number;
        throw Refuse($"{where} has {key} = {element.GetRawText()}; give a finite number.");
    }

    private static int? Whole(JsonElement scaling, string key, string where)
    {
        if (Number(scaling, key, where) is not { } number) return null;
        if (number is >= 1 and <= int.MaxValue && number == Math.Floor(number)) return (int)number;
        throw Refuse($"{where} has {key} = {Text(number)}; give a whole number of 1 or more.");
    }

    private static bool? Flag(JsonElement scaling, string key, string where)
    {
        if (!scaling.TryGetProperty(key, out var element) || element.ValueKind == JsonValueKind.Null) return null;
        if (element.ValueKind is JsonValueKind.True or JsonValueKind.False) return element.GetBoolean();
        throw Refuse($"{where} has {key} = {element.GetRawText()}; give true or false.");
    }

    private static string Text(double number) => number.ToString(CultureInfo.InvariantCulture);

    private static ConfigException Refuse(string message) => new("MODEL002", message);
}
