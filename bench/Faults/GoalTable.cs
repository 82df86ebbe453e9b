using System.Globalization;

namespace Megatron.Faults;

/// <summary>Goals and figures side by side, as a Markdown table.</summary>
public static class GoalTable
{
    /// <summary>Prints the rows, then how many goals are met.</summary>
    public static void Write(TextWriter output, IReadOnlyList<GoalResult> results)
    {
        output.WriteLine();
        output.WriteLine("| goal | what | must | measured | faults | met |");
        output.WriteLine("| --- | --- | --- | --- | --- | --- |");
        foreach (var row in results)
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"| {row.Id} | {row.What} | {row.Must} | {row.Measured} | {row.Repetitions} | {Verdict(row)} |"));
        output.WriteLine();
        output.WriteLine($"{results.Count(row => row.IsMet == true)} met, {results.Count(row => row.IsMet == false)} missed, {results.Count(row => row.IsMet is null)} not measured");
    }

    private static string Verdict(GoalResult row) => row.IsMet switch { true => "yes", false => "NO", null => "–" };
}
