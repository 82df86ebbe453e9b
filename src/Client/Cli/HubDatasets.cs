using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>
/// Data sets named by a hub id, <c>hf::owner/name</c> or <c>ms::owner/name</c> with an optional <c>:subset</c>, found where the hub's own tools have
/// put them. Nothing is fetched. An id without a prefix is looked for in both, ModelScope first.
/// </summary>
/// <param name="folders">Where the hubs keep their downloads.</param>
public sealed class HubDatasets(CacheFolders folders)
{
    private static readonly string[] DataFiles = ["*.jsonl*", "*.json*", "*.csv*", "*.txt*", "*.parquet"];

    /// <summary>The configuration with every hub id replaced by the folder or pattern of its files; other texts stay.</summary>
    /// <exception cref="ConfigException">DATA009: an id is in no cache; names the folders that were looked in.</exception>
    public TrainingConfig Resolve(TrainingConfig config)
    {
        var errors = new List<ConfigError>();
        string[] All(IReadOnlyList<string> texts) => [.. texts.Select(text =>
        {
            try
            {
                return Resolve(text);
            }
            catch (ConfigException e)
            {
                errors.AddRange(e.Errors);
                return text;
            }
        })];
        config = config with { Dataset = All(config.Dataset), ValDataset = All(config.ValDataset) };
        return errors.Count == 0 ? config : throw new ConfigException(errors);
    }

    /// <summary>One text of <c>--dataset</c>.</summary>
    /// <exception cref="ConfigException">DATA009.</exception>
    public string Resolve(string text)
    {
        var hub = text.StartsWith("hf::", StringComparison.Ordinal) ? "hf" : text.StartsWith("ms::", StringComparison.Ordinal) ? "ms" : "";
        if (hub.Length == 0 && !LooksLikeId(text)) return text;
        var rest = hub.Length == 0 ? text : text[4..];
        var hash = rest.LastIndexOf('#');
        var count = hash < 0 ? "" : rest[hash..];
        var parts = (hash < 0 ? rest : rest[..hash]).Split(':');
        var looked = new List<string>();
        var folder = (hub == "hf" ? null : FindModelScope(parts[0], looked)) ?? (hub == "ms" ? null : FindHuggingFace(parts[0], looked));
        if (folder is null)
            throw new ConfigException("DATA009", $"dataset {text} is not in the local cache (looked in {(looked.Count == 0 ? "no folder: HOME is not set" : string.Join(", ", looked))}); " +
                "nothing is fetched from a hub yet: fetch it with the hub's own tool or give the path of its files.");
        return FilesOf(text, folder, parts.Length > 1 ? parts[1] : "default") + count;
    }

    // owner/name, neither of which begins like a path, and nothing of that name on the disk.
    private static bool LooksLikeId(string text)
    {
        if (text.Contains('*') || text.Contains('?') || text.StartsWith('/') || text.StartsWith('.') || Path.Exists(text)) return false;
        var hash = text.LastIndexOf('#');
        var path = hash < 0 ? text : text[..hash];
        if (Path.Exists(path)) return false;
        var id = path.Split(':')[0];
        return id.Count(c => c == '/') == 1 && !id.EndsWith('/') && Path.GetExtension(id).ToLowerInvariant() is not (".jsonl" or ".json" or ".csv" or ".txt" or ".parquet" or ".gz" or ".zst");
    }

    private string? FindHuggingFace(string id, List<string> looked)
    {
        if (folders.HuggingFace is not { } root) return null;
        var repository = Path.Combine(root, "datasets--" + id.Replace("/", "--", StringComparison.Ordinal));
        looked.Add(repository);
        var snapshots = Path.Combine(repository, "snapshots");
        if (!Directory.Exists(snapshots)) return null;
        var reference = Path.Combine(repository, "refs", "main");
        if (File.Exists(reference) && Path.Combine(snapshots, File.ReadAllText(reference).Trim()) is var named && Directory.Exists(named)) return named;
        return Directory.GetDirectories(snapshots).MaxBy(Directory.GetLastWriteTimeUtc);
    }

    private string? FindModelScope(string id, List<string> looked)
    {
        if (folders.ModelScope is not { } root) return null;
        foreach (var name in (string[])[id, id.Replace(".", "___", StringComparison.Ordinal)])
        {
            foreach (var folder in (string[])[Path.Combine(root, "hub", "datasets", name), Path.Combine(root, "datasets", name)])
            {
                if (looked.Contains(folder)) continue;
                looked.Add(folder);
                if (Directory.Exists(folder)) return folder;
            }
        }
        return null;
    }

    /// <summary>
    /// The files of a subset: those of the folder of that name, else those whose name begins with it; of a set without such, all. Of files that are
    /// marked as splits only those for training are taken.
    /// </summary>
    private static string FilesOf(string text, string folder, string subset)
    {
        foreach (var below in (string[])[Path.Combine(folder, subset), Path.Combine(folder, "data", subset)])
            if (HasData(below, "*")) return TrainOnly(below);
        if (HasData(folder, subset + "*")) return $"{folder}/**/{subset}*";
        if (subset is "default" or "all" && HasData(folder, "*")) return TrainOnly(folder);
        throw new ConfigException("DATA009", $"dataset {text}: {folder} has no data files{(subset is "default" or "all" ? "" : $" of a subset {subset}")}; check the name.");
    }

    private static string TrainOnly(string folder)
    {
        if (HasData(folder, "train*")) return $"{folder}/**/train*";
        return Directory.Exists(Path.Combine(folder, "train")) ? Path.Combine(folder, "train") : folder;
    }

    private static bool HasData(string folder, string pattern) => Directory.Exists(folder) && Directory.EnumerateFiles(folder, pattern, SearchOption.AllDirectories)
        .Any(file => DataFiles.Any(kind => System.IO.Enumeration.FileSystemName.MatchesSimpleExpression(kind, Path.GetFileName(file))));
}
