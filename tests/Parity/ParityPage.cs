using System.Globalization;
using Megatron.Testing;

namespace Megatron.Parity.Tests;

/// <summary>
/// The table of <c>docs/parity.md</c>: one row for each layout, accumulation and mean. Rows that are not run stay as they are, and so do the
/// sections of other tests, which follow the table.
/// </summary>
internal sealed class ParityPage
{
    private readonly string path = Path.Combine(Repository.Root, "docs", "parity.md");
    private readonly Dictionary<string, string> rows;
    private readonly string rest;

    /// <summary>Reads the page.</summary>
    public ParityPage()
    {
        var text = File.ReadAllText(path);
        var end = text.IndexOf("\n## ", StringComparison.Ordinal);
        rest = end < 0 ? "" : text[end..];
        rows = (end < 0 ? text : text[..end]).Split('\n').Where(line => line.StartsWith("| ", StringComparison.Ordinal))
            .ToDictionary(line => string.Concat(line.Split('|').Take(4).Select(part => part + "|")), StringComparer.Ordinal);
    }

    /// <summary>Whether the name begins with one of the words of <c>PARITY_CELLS</c>, which are separated by commas; without the variable all are chosen.</summary>
    public static bool IsChosen(string name) =>
        Environment.GetEnvironmentVariable("PARITY_CELLS") is not { } words || words.Split(',').Any(word => name.StartsWith(word, StringComparison.Ordinal));

    /// <summary>What a row begins with.</summary>
    public static string TitleOf(ParityCell cell, int accumulation, bool perToken) =>
        string.Create(CultureInfo.InvariantCulture, $"| {cell.Name} | {accumulation} | {(perToken ? "token" : "micro-batch")} |");

    /// <summary>Replaces a row.</summary>
    /// <param name="columns">One for each model.</param>
    public void Set(string title, IEnumerable<string> columns) => rows[title] = title + string.Concat(columns.Select(column => $" {column} |"));

    /// <summary>Writes the known rows in this order.</summary>
    /// <param name="allowed">Largest deviations as the page shows them.</param>
    public void Write(IEnumerable<string> titles, string allowed)
    {
        var table = titles.Select(title => rows.GetValueOrDefault(title)).OfType<string>().ToArray();
        var numRuns = table.Sum(row => row.Split('|').Count(column => column.Contains(" / ", StringComparison.Ordinal)));
        File.WriteAllText(path, string.Create(CultureInfo.InvariantCulture, $"""
            # Parity of layouts

            Written by `./megatron test --matrix`; do not edit. Each cell trains a golden model for 20 steps in fp32 on a CPU, the ranks being threads
            that communicate by the loopback backend, and shows the largest relative deviation of loss / gradient norm / final weights (L2 norm of a tensor).
            Allowed: {allowed}. Oracle of loss and norm with a mean over tokens: the golden
            trajectory of an independent implementation; with a mean over micro-batches, and of packed rows: one rank on the same micro-batches. Oracle of the
            weights: one rank. Packed: the golden rows cut into samples of 1 to 40 tokens, which are packed again. {numRuns} runs.

            | layout | accumulation | mean over | {string.Join(" | ", ParityCell.Models)} |
            |---|---|---|{string.Concat(ParityCell.Models.Select(_ => "---|"))}
            {string.Join('\n', table)}
            """).ReplaceLineEndings("\n").TrimEnd() + "\n" + rest);
    }
}
