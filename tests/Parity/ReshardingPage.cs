using System.Globalization;
using Megatron.Testing;

namespace Megatron.Parity.Tests;

/// <summary>
/// A section of <c>docs/parity.md</c>: a row for each layout that is saved, a column for each that it is loaded into. Rows that are not run
/// stay as they are, and so does the rest of the page.
/// </summary>
internal sealed class ReshardingPage
{
    private readonly string path = Path.Combine(Repository.Root, "docs", "parity.md");
    private readonly ReshardingTable table;
    private readonly Dictionary<string, string> rows;
    private readonly string before, after;

    /// <summary>Reads the page.</summary>
    public ReshardingPage(ReshardingTable table)
    {
        this.table = table;
        var text = File.ReadAllText(path);
        var begin = text.IndexOf($"\n{table.Title}\n", StringComparison.Ordinal);
        if (begin < 0) begin = text.Length;
        var end = begin == text.Length ? begin : text.IndexOf("\n## ", begin + 1, StringComparison.Ordinal);
        if (end < 0) end = text.Length;
        (before, after) = (text[..begin].TrimEnd(), text[end..]);
        rows = text[begin..end].Split('\n').Where(line => line.StartsWith("| ", StringComparison.Ordinal))
            .ToDictionary(line => line.Split('|')[1].Trim(), StringComparer.Ordinal);
    }

    /// <summary>Replaces a row.</summary>
    /// <param name="columns">One for each layout.</param>
    public void Set(ParityCell from, IEnumerable<string> columns) => rows[from.Name] = $"| {from.Name} |" + string.Concat(columns.Select(column => $" {column} |"));

    /// <summary>Writes the known rows in the order of the layouts.</summary>
    /// <param name="tolerance">Largest deviation allowed.</param>
    public void Write(double tolerance)
    {
        var names = table.Layouts.Select(layout => layout.Name).ToArray();
        var known = names.Select(name => rows.GetValueOrDefault(name)).OfType<string>().ToArray();
        File.WriteAllText(path, string.Create(CultureInfo.InvariantCulture, $"""
            {before}

            {table.Title}

            Rows saved, columns loaded: five steps of {table.Model} in the one layout, a checkpoint with optimizer state, five more steps in the other, in fp32 on a
            CPU. Shown is the largest relative deviation of the last five losses from one rank without interruption (allowed: {tolerance:0e+0}); on the
            diagonal "same bits" means equal, bit for bit, to the same layout without interruption. {known.Length * names.Length} pairs.

            | saved \ loaded | {string.Join(" | ", names)} |
            |---|{string.Concat(names.Select(_ => "---|"))}
            {string.Join('\n', known)}
            """).ReplaceLineEndings("\n").TrimEnd() + "\n" + after);
    }
}
