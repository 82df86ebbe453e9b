using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// Opens a data file by its extension (with or without a <c>.gz</c> behind it). Reading never executes anything: data-set scripts are not supported.
/// </summary>
internal static class RowSources
{
    /// <exception cref="ConfigException">DATA011: a format that is not supported; and what the formats throw.</exception>
    public static IRowSource Open(string path)
    {
        var name = path.EndsWith(".gz", StringComparison.OrdinalIgnoreCase) ? path[..^3] : path;
        if (IsParquet(path)) return ParquetRows.Read(path);
        return Path.GetExtension(name).ToLowerInvariant() switch
        {
            ".jsonl" or ".ndjson" => new LineRows(LineFile.Open(path, LineFile.MaxLineBytes), plainText: false),
            ".json" => JsonArrayReader.IsArray(path)
                ? JsonArrayReader.Read(path)
                : new LineRows(LineFile.Open(path, LineFile.MaxLineBytes), plainText: false),
            ".txt" => new LineRows(LineFile.Open(path, LineFile.MaxLineBytes), plainText: true),
            ".csv" => CsvRows.Read(path),
            ".parquet" => ParquetRows.Read(path),
            var extension => throw new ConfigException("DATA011", $"dataset {path} has the extension \"{extension}\"; supported are jsonl, json, csv, " +
                "txt and parquet, each also as .gz except parquet."),
        };
    }

    private static bool IsParquet(string path)
    {
        using var file = FileBytes.Open(path);
        Span<byte> magic = stackalloc byte[4];
        return RandomAccess.Read(file, magic, 0) == 4 && magic.SequenceEqual("PAR1"u8);
    }
}
