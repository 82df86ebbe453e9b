using System.IO.Hashing;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Settings records as flat name-value texts: what a manifest stores, hashes and compares.</summary>
public static class ConfigFacts
{
    /// <summary>Every property of a record that has a value, nested ones as <c>outer.inner</c>, in ordinal order of the names.</summary>
    public static IReadOnlyDictionary<string, string> Of<T>(T record) where T : class
    {
        var facts = new SortedDictionary<string, string>(StringComparer.Ordinal);
        using var document = JsonDocument.Parse(StrictJson.Write(record));
        Flatten(document.RootElement, "", facts);
        return facts;
    }

    /// <summary>XxHash128 of the texts, in hexadecimal.</summary>
    public static string Hash(IReadOnlyDictionary<string, string> facts) =>
        Convert.ToHexStringLower(XxHash128.Hash(StrictJson.Write(new SortedDictionary<string, string>(facts.ToDictionary(), StringComparer.Ordinal))));

    /// <summary>XxHash128 over the tokenizer files of a folder, names included; null when it has none.</summary>
    public static string? TokenizerHash(string folder)
    {
        var hash = new XxHash128();
        var isEmpty = true;
        foreach (var (name, content) in HfFolderWriter.TokenizerContents(folder))
        {
            isEmpty = false;
            hash.Append(System.Text.Encoding.UTF8.GetBytes(name));
            hash.Append(content);
        }
        return isEmpty ? null : Convert.ToHexStringLower(hash.GetCurrentHash());
    }

    /// <summary>One error for each setting that differs, CKPT040.</summary>
    /// <param name="saved">Facts of the checkpoint.</param>
    /// <param name="current">Facts of this run.</param>
    /// <param name="what">What is compared, e.g. <c>model</c>.</param>
    public static IReadOnlyList<ConfigError> Differences(IReadOnlyDictionary<string, string> saved, IReadOnlyDictionary<string, string> current, string what) =>
    [
        .. saved.Keys.Union(current.Keys).Order(StringComparer.Ordinal)
            .Where(name => saved.GetValueOrDefault(name) != current.GetValueOrDefault(name))
            .Select(name => new ConfigError("CKPT040",
                $"{what}.{name} = {current.GetValueOrDefault(name) ?? "absent"} differs from the checkpoint's {Printable.Quote(saved.GetValueOrDefault(name) ?? "absent")}; use the settings of the checkpoint or start from --model.")),
    ];

    private static void Flatten(JsonElement element, string name, SortedDictionary<string, string> facts)
    {
        if (element.ValueKind == JsonValueKind.Object)
        {
            foreach (var property in element.EnumerateObject()) Flatten(property.Value, name.Length == 0 ? property.Name : $"{name}.{property.Name}", facts);
        }
        else if (element.ValueKind != JsonValueKind.Null)
        {
            facts[name] = element.ValueKind == JsonValueKind.String ? element.GetString() ?? "" : element.GetRawText();
        }
    }
}
