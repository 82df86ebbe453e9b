using System.Text.Json;

namespace Megatron.Compute.Configuration;

/// <summary>
/// The <c>args.json</c> beside a checkpoint or an exported model: what a later command reads to know template, system prompt and dtype.
/// Written as canonical JSON of <see cref="TrainingConfig"/>; files of the reference system, which hold further keys, are read too.
/// </summary>
public sealed class ArgsFile
{
    /// <summary>Name of the file.</summary>
    public const string FileName = "args.json";

    private readonly IReadOnlyDictionary<string, JsonElement> _entries;

    private ArgsFile(string path, IReadOnlyDictionary<string, JsonElement> entries)
    {
        Path = path;
        _entries = entries;
    }

    /// <summary>Where it was read.</summary>
    public string Path { get; }

    /// <summary>
    /// Writes <paramref name="config"/> to <paramref name="folder"/>/args.json, secrets (<c>*_token</c>) as null. The file appears
    /// complete or not at all.
    /// </summary>
    public static void Write(string folder, TrainingConfig config)
    {
        Directory.CreateDirectory(folder);
        var path = System.IO.Path.Combine(folder, FileName);
        var temporary = path + ".tmp";
        File.WriteAllText(temporary, WithoutSecrets(config).ToJson());
        File.Move(temporary, path, overwrite: true);
    }

    /// <summary>A copy in which every option named <c>*_token</c> is empty: what may be written, logged and sent.</summary>
    public static TrainingConfig WithoutSecrets(TrainingConfig config) => OptionCatalog.With(config, OptionCatalog.All
        .Where(option => option.Name.EndsWith("_token", StringComparison.Ordinal)).ToDictionary(option => option.Name, object? (_) => null));

    /// <summary>Reads the file of a folder; null when the folder has none.</summary>
    /// <exception cref="ConfigException">CFG002: the file is no JSON object.</exception>
    public static ArgsFile? TryRead(string folder)
    {
        var path = System.IO.Path.Combine(folder, FileName);
        if (!File.Exists(path)) return null;
        using var document = ConfigJson.ParseObject(File.ReadAllText(path), path);
        var entries = new Dictionary<string, JsonElement>(StringComparer.Ordinal);
        foreach (var property in document.RootElement.EnumerateObject()) entries[property.Name] = property.Value.Clone();
        return new ArgsFile(path, entries);
    }

    /// <summary>The value of an option in the file; false when the file does not say (absent, null or an empty list).</summary>
    /// <exception cref="ConfigException">CFG003: the value has the wrong type; the message names the file.</exception>
    public bool TryGet(OptionInfo option, out object? value)
    {
        value = null;
        if (!_entries.TryGetValue(option.Name, out var element) || element.ValueKind == JsonValueKind.Null) return false;
        if (element.ValueKind == JsonValueKind.Array && element.GetArrayLength() == 0) return false;
        if (option.Name == "torch_dtype" && element.ValueKind == JsonValueKind.String)
            element = JsonSerializer.SerializeToElement((element.GetString() ?? "").Replace("torch.", "", StringComparison.Ordinal));
        if (ConfigJson.TryConvert(option, element, out value, out var problem)) return true;
        throw new ConfigException([problem with { Message = $"{Path}: {problem.Message}" }]);
    }
}
