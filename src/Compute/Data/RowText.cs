using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Prepared;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>Reads chosen rows of prepared sources once more, as conversations: from their place in the file where that is possible.</summary>
internal static class RowText
{
    /// <summary>The conversations of the rows, in their order.</summary>
    /// <exception cref="ConfigException">DATA031: the file was changed since it was prepared.</exception>
    public static Conversation[] Read(IReadOnlyList<PreparedSource> sources, RowRef[] rows, RowParser parser)
    {
        var texts = new Dictionary<RowRef, Conversation>();
        foreach (var group in rows.Distinct().GroupBy(row => row.Source))
        {
            var source = sources[group.Key];
            var wanted = group.ToDictionary(row => source.Row(row.Row).Number);
            foreach (var row in ReadRows(source, [.. group.Select(row => source.Row(row.Row))]))
                texts[wanted[row.Number]] = parser.TryParse(row, new DataNotices(), out var conversation, out var problem)
                    ? conversation
                    : throw new ConfigException("DATA031", $"{problem.Position}: {problem.Detail} The file was changed after it was prepared.");
        }
        return Array.ConvertAll(rows, row => texts.TryGetValue(row, out var text)
            ? text
            : throw new ConfigException("DATA031", $"{sources[row.Source].Facts.Source} became shorter after it was prepared; start again."));
    }

    private static IEnumerable<SourceRow> ReadRows(PreparedSource source, RowEntry[] entries)
    {
        var path = source.Facts.Source;
        if (Array.TrueForAll(entries, entry => entry.Offset >= 0))
        {
            using var file = DataStream.OpenFile(path);
            foreach (var entry in entries)
            {
                var json = new byte[entry.NumBytes];
                file.Position = entry.Offset;
                var read = file.ReadAtLeast(json, json.Length, throwOnEndOfStream: false);
                yield return new SourceRow(path, entry.Number, entry.Line, json.AsMemory(0, read), Problem: null);
            }
            yield break;
        }
        var wanted = entries.Select(entry => entry.Number).ToHashSet();
        using var rows = RowSources.Open(path);
        while (wanted.Count > 0 && rows.TryRead(out var row))
            if (wanted.Remove(row.Number)) yield return row;
    }
}
