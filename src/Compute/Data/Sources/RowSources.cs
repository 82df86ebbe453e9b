using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// Opens a data file by its extension (with or without <c>.gz</c> or <c>.zst</c> behind it). Reading never executes anything: data-set scripts
/// are not supported.
/// </summary>
internal static class RowSources
{
    /// <summary>Extensions of data files.</summary>
    public static readonly string[] Extensions = [".jsonl", ".ndjson", ".json", ".txt", ".csv", ".parquet"];

    private static readonly string[] Packed = [".gz", ".zst"];

    /// <summary>True when the name is that of a data file.</summary>
    public static bool IsDataFile(string path) => Extensions.Contains(ExtensionOf(path));

    /// <summary>Opens a file at its first row.</summary>
    /// <exception cref="ConfigException">DATA011: a format that is not supported; and what the formats throw.</exception>
    public static IRowReader Open(string path)
    {
        if (IsParquet(path)) return new ParquetRows(path);
        return ExtensionOf(path) switch
        {
            ".jsonl" or ".ndjson" => new LineRows(path, plainText: false),
            ".json" => JsonArrayRows.TryOpen(path) ?? (IRowReader)new LineRows(path, plainText: false),
            ".txt" => new LineRows(path, plainText: true),
            ".csv" => new CsvRows(path),
            ".parquet" => new ParquetRows(path),
            var extension => throw new ConfigException("DATA011", $"dataset {path} has the extension \"{extension}\"; supported are jsonl, json, csv, " +
                "txt and parquet, each also as .gz or .zst except parquet."),
        };
    }

    private static string ExtensionOf(string path)
    {
        var extension = Path.GetExtension(path).ToLowerInvariant();
        return Packed.Contains(extension) ? Path.GetExtension(path[..^extension.Length]).ToLowerInvariant() : extension;
    }

    private static bool IsParquet(string path)
    {
        using var file = DataStream.OpenFile(path);
        Span<byte> magic = stackalloc byte[4];
        return file.ReadAtLeast(magic, 4, throwOnEndOfStream: false) == 4 && magic.SequenceEqual("PAR1"u8);
    }
}
