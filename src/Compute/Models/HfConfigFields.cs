using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Models;

/// <summary>Typed access to the keys of a config.json that gathers every problem instead of stopping at the first.</summary>
/// <param name="root">The JSON object.</param>
/// <param name="source">Path for messages.</param>
internal sealed class HfConfigFields(JsonElement root, string source)
{
    private const int MaxShownLength = 100;

    private readonly List<ConfigError> errors = [];

    public string Source => source;

    /// <summary>First entry of <c>architectures</c>.</summary>
    /// <exception cref="ConfigException">There is none.</exception>
    public string Architecture()
    {
        if (root.ValueKind == JsonValueKind.Object && Find("architectures") is { ValueKind: JsonValueKind.Array } list && list.GetArrayLength() > 0
            && list[0].ValueKind == JsonValueKind.String)
            return list[0].ToString();
        throw new ConfigException("MODEL002", $"{source} names no architecture (\"architectures\"); it is not the config.json of a language model.");
    }

    /// <summary>The value; null when the key is absent or null.</summary>
    public JsonElement? Find(string key) =>
        root.TryGetProperty(key, out var value) && value.ValueKind != JsonValueKind.Null ? value : null;

    /// <summary>True when the key is there and not null.</summary>
    public bool Has(string key) => Find(key) is not null;

    /// <summary>A required whole number above 0; 1 after an error was noted.</summary>
    public int Positive(string key)
    {
        if (Find(key) is not { } value)
        {
            errors.Add(new ConfigError("MODEL004", $"{source}: {key} is missing; the model cannot be built without it."));
            return 1;
        }
        return AsPositive(key, value);
    }

    /// <summary>A whole number above 0, or the default when absent.</summary>
    public int PositiveOr(string key, int fallback) => Find(key) is { } value ? AsPositive(key, value) : fallback;

    /// <summary>A number, or the default when absent.</summary>
    public double NumberOr(string key, double fallback) => Find(key) is { } value ? AsNumber(key, value, fallback) : fallback;

    /// <summary>True when the key is there and true.</summary>
    public bool Flag(string key)
    {
        if (Find(key) is not { } value) return false;
        if (value.ValueKind is JsonValueKind.True or JsonValueKind.False) return value.GetBoolean();
        Refuse(key, "is not true or false");
        return false;
    }

    /// <summary>A string; null when absent or something else.</summary>
    public string? Text(string key) => Find(key) is { ValueKind: JsonValueKind.String } value ? value.GetString() : null;

    /// <summary>A list of whole numbers, or the default when absent.</summary>
    public IReadOnlyList<int> IntegersOr(string key, IReadOnlyList<int> fallback)
    {
        if (Find(key) is not { } value) return fallback;
        if (value.ValueKind == JsonValueKind.Array
            && value.EnumerateArray().All(item => item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out _)))
            return [.. value.EnumerateArray().Select(item => item.GetInt32())];
        Refuse(key, "is not a list of whole numbers");
        return fallback;
    }

    /// <summary>Notes that the value of a key cannot be used.</summary>
    /// <param name="problem">Continues "key = value …".</param>
    public void Refuse(string key, string problem) =>
        errors.Add(new ConfigError("MODEL005", $"{source}: {key} = {Show(Find(key))} {problem}."));

    /// <summary>Notes a problem of a nested value.</summary>
    public void Refuse(string path, JsonElement? value, string problem) =>
        errors.Add(new ConfigError("MODEL005", $"{source}: {path} = {Show(value)} {problem}."));

    /// <summary>A number found in a nested object.</summary>
    public double AsNumber(string path, JsonElement value, double fallback)
    {
        if (value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number) && double.IsFinite(number)) return number;
        Refuse(path, value, "is not a number");
        return fallback;
    }

    /// <exception cref="ConfigException">Something was refused.</exception>
    public void ThrowIfAny()
    {
        if (errors.Count > 0) throw new ConfigException(errors);
    }

    private int AsPositive(string key, JsonElement value)
    {
        var number = AsNumber(key, value, 1);
        if (number is >= 1 and <= int.MaxValue && number == Math.Floor(number)) return (int)number;
        Refuse(key, "is not a whole number above 0");
        return 1;
    }

    /// <summary>The value as the file has it, on one line and not longer than a message bears.</summary>
    private static string Show(JsonElement? value)
    {
        var text = value is { } given ? JsonSerializer.Serialize(given) : "null";
        return text.Length <= MaxShownLength ? text : $"{text.AsSpan(0, MaxShownLength)}…";
    }
}
