using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data;

/// <summary>One entry of <c>--dataset</c>: a file, and how many of its rows.</summary>
/// <param name="Path">Path as the user wrote it, without the count.</param>
/// <param name="NumRows">Rows to take: fewer than there are, a random subset; more, whole copies and a random rest. Null = all.</param>
public sealed record DatasetSpec(string Path, int? NumRows)
{
    /// <summary>
    /// Reads <c>path</c> or <c>path#N</c>. A text that exists as a file is a path as a whole, so <c>#</c> in a file name does no harm.
    /// </summary>
    /// <exception cref="ConfigException">DATA009 (no such file, a folder, a hub id), DATA010 (the count is no positive number).</exception>
    public static DatasetSpec Parse(string text)
    {
        if (File.Exists(text)) return new DatasetSpec(text, NumRows: null);
        var hash = text.LastIndexOf('#');
        var path = hash < 0 ? text : text[..hash];
        if (Directory.Exists(path)) throw new ConfigException("DATA009", $"dataset {path} is a folder; name a file in it (jsonl, json, csv, txt or parquet).");
        if (!File.Exists(path))
            throw new ConfigException("DATA009", $"dataset {path} does not exist as a file; check the path. Data sets are read from local files " +
                "only: fetch one of a hub first and give the path of its file.");
        if (hash < 0) return new DatasetSpec(path, NumRows: null);
        return int.TryParse(text.AsSpan(hash + 1), NumberStyles.None, CultureInfo.InvariantCulture, out var numRows) && numRows > 0
            ? new DatasetSpec(path, numRows)
            : throw new ConfigException("DATA010", $"dataset {text}: \"{text[(hash + 1)..]}\" after # is not a number of rows; write for example {path}#500.");
    }
}
