using System.Globalization;
using System.Text.Json;

namespace Megatron.Compute.Tokenization;

/// <summary>What tokenizer_config.json (or the older special_tokens_map.json) adds to tokenizer.json.</summary>
internal sealed record TokenizerConfig
{
    public string? Bos { get; init; }

    public string? Eos { get; init; }

    public string? Pad { get; init; }

    /// <summary><c>add_bos_token</c>; null when absent.</summary>
    public bool? AddsBos { get; init; }

    /// <summary>Python class that Hugging Face would load.</summary>
    public string TokenizerClass { get; init; } = "";

    public IReadOnlyList<AddedToken> AddedTokens { get; init; } = [];

    /// <summary>Reads both files of a folder; what is absent stays null.</summary>
    public static TokenizerConfig Read(string folder)
    {
        var config = TokenizerFiles.Read(folder, "tokenizer_config.json", Parse) ?? new TokenizerConfig();
        var map = TokenizerFiles.Read(folder, "special_tokens_map.json", Parse);
        return config with { Bos = config.Bos ?? map?.Bos, Eos = config.Eos ?? map?.Eos, Pad = config.Pad ?? map?.Pad };
    }

    private static TokenizerConfig Parse(JsonElement root) => new()
    {
        Bos = Token(root, "bos_token"),
        Eos = Token(root, "eos_token"),
        Pad = Token(root, "pad_token"),
        AddsBos = root.TryGetProperty("add_bos_token", out var adds) && adds.ValueKind != JsonValueKind.Null ? adds.GetBoolean() : null,
        TokenizerClass = root.TryGetProperty("tokenizer_class", out var name) ? name.GetString() ?? "" : "",
        AddedTokens = root.TryGetProperty("added_tokens_decoder", out var added)
            ? [.. added.EnumerateObject().Select(AddedToken)]
            : [],
    };

    private static AddedToken AddedToken(JsonProperty entry) =>
        TokenizerJson.ParseAddedToken(entry.Value, int.Parse(entry.Name, CultureInfo.InvariantCulture));

    /// <summary>A token as text or as an object with its text in <c>content</c>.</summary>
    private static string? Token(JsonElement root, string name)
    {
        if (!root.TryGetProperty(name, out var value) || value.ValueKind == JsonValueKind.Null)
            return null;
        return value.ValueKind == JsonValueKind.Object ? value.GetProperty("content").GetString() : value.GetString();
    }
}
