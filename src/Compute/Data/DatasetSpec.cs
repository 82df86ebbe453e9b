using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data;

/// <summary>One entry of <c>--dataset</c>: its files in order, and how many of their rows.</summary>
/// <param name="Path">What the user wrote, without the count.</param>
/// <param name="Files">The data files.</param>
/// <param name="NumRows">Rows to take: fewer than there are, a random subset; more, whole copies and a random rest. Null = all.</param>
public sealed record DatasetSpec(string Path, IReadOnlyList<string> Files, int? NumRows)
{
    /// <summary>
    /// Reads <c>path</c> or <c>path#N</c>, where the path is a file, a folder (its data files, subfolders included, in the order of their names) or a
    /// pattern with <c>*</c> and <c>?</c> (<c>**</c> for any subfolder). A text that exists is a path as a whole, so <c>#</c> in a name does no harm.
    /// </summary>
    /// <exception cref="ConfigException">DATA009 (nothing there), DATA010 (the count is no positive number).</exception>
    public static DatasetSpec Parse(string text)
    {
        if (System.IO.Path.Exists(text)) return new DatasetSpec(text, Find(text), NumRows: null);
        var hash = text.LastIndexOf('#');
        var path = hash < 0 ? text : text[..hash];
        var files = Find(path);
        if (hash < 0) return new DatasetSpec(path, files, NumRows: null);
        return int.TryParse(text.AsSpan(hash + 1), NumberStyles.None, CultureInfo.InvariantCulture, out var numRows) && numRows > 0
            ? new DatasetSpec(path, files, numRows)
            : throw new ConfigException("DATA010", $"dataset {text}: \"{text[(hash + 1)..]}\" after # is not a number of rows; write for example {path}#500.");
    }

    private static string[] Find(string path)
    {
        if (File.Exists(path)) return [path];
        if (Directory.Exists(path)) return FindInFolder(path, "*", SearchOption.AllDirectories, RowSources.IsDataFile, "its");
        if (path.AsSpan().ContainsAny('*', '?')) return FindByPattern(path);
        throw new ConfigException("DATA009", $"dataset {path} does not exist as a file, a folder or a pattern; check the path. Of a hub, give hf::owner/name or " +
            "ms::owner/name, which are looked for in the local cache only.");
    }

    private static string[] FindByPattern(string pattern)
    {
        var parts = pattern.Split('/');
        var first = Array.FindIndex(parts, part => part.AsSpan().ContainsAny('*', '?'));
        var folder = first == 0 ? "." : string.Join('/', parts[..first]) is { Length: > 0 } above ? above : "/";
        if (!Directory.Exists(folder)) throw new ConfigException("DATA009", $"dataset {pattern}: the folder {folder} does not exist; check the path.");
        var matcher = string.Join('/', parts[first..]);
        return FindInFolder(folder, "*", SearchOption.AllDirectories, file => Matches(System.IO.Path.GetRelativePath(folder, file), matcher), "no");
    }

    private static string[] FindInFolder(string folder, string pattern, SearchOption depth, Func<string, bool> isWanted, string which)
    {
        string[] files = [.. Directory.EnumerateFiles(folder, pattern, depth).Where(isWanted).Order(StringComparer.Ordinal)];
        if (files.Length > 0) return files;
        throw new ConfigException("DATA009", which == "its"
            ? $"dataset {folder} is a folder without data files; supported are {string.Join(", ", RowSources.Extensions)}, each also with .gz or .zst behind it."
            : $"dataset {folder}: no file below this folder fits the pattern; check it.");
    }

    /// <summary>A path against a pattern, part by part; <c>**</c> stands for any number of folders.</summary>
    private static bool Matches(string path, string pattern) => Matches(path.Split('/'), pattern.Split('/'));

    private static bool Matches(ReadOnlySpan<string> path, ReadOnlySpan<string> pattern)
    {
        if (pattern.IsEmpty) return path.IsEmpty;
        if (pattern[0] == "**") return Matches(path, pattern[1..]) || (!path.IsEmpty && Matches(path[1..], pattern));
        return !path.IsEmpty && System.IO.Enumeration.FileSystemName.MatchesSimpleExpression(pattern[0], path[0], ignoreCase: false) && Matches(path[1..], pattern[1..]);
    }
}
