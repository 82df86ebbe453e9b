namespace Megatron.Client.Cli;

/// <summary>A table in plain text: columns as wide as their widest cell, two blanks between them; the last one is cut at a terminal's edge.</summary>
/// <param name="headers">Names of the columns.</param>
public sealed class TextTable(params IReadOnlyList<string> headers)
{
    private readonly List<IReadOnlyList<string>> rows = [headers];

    /// <summary>Adds a row with a cell for each column.</summary>
    public void Add(params IReadOnlyList<string> cells) => rows.Add(cells);

    /// <summary>Prints headers and rows.</summary>
    /// <param name="columns">Width of the terminal; null does not cut.</param>
    public void Write(TextWriter writer, int? columns)
    {
        int[] widths = [.. headers.Select((_, column) => rows.Max(row => row[column].Length))];
        foreach (var row in rows)
        {
            string line = string.Join("  ", row.Select((cell, column) => column == headers.Count - 1 ? cell : cell.PadRight(widths[column]))).TrimEnd();
            writer.WriteLine(columns is { } width && line.Length > width ? line[..Math.Max(0, width - 1)] + "…" : line);
        }
    }
}
