using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a checkpoint in the background costs the training (reliability R18). Timed, so only by <c>./megatron test EndToEnd --large</c>.</summary>
public sealed partial class SaveStallTests(ITestOutputHelper output)
{
    private const int Steps = 81, Interval = 20, Rounds = 5;

    [Fact, Trait("Category", "large")]
    public async Task AsyncSave_EachTwentiethStep_StallsAtMostOneStepAndCostsAtMost3Percent()
    {
        using var work = new Workspace(rows: 400, layers: 6, hidden: 256);
        var (without, with, stalls) = (new List<double[]>(), new List<double[]>(), new List<double>());
        for (var round = 0; round < Rounds; round++)
        {
            without.Add(StepTimes(await RunAsync(work, $"without{round}", "--save_interval", "1000")));
            var events = await RunAsync(work, $"with{round}", "--save_interval", $"{Interval}", "--async_save");
            with.Add(StepTimes(events));
            stalls.AddRange(events.Where(item => Kind(item) == "notice").Select(item => Copied().Match(item.GetProperty("text").GetString() ?? ""))
                .Where(match => match.Success).Select(match => double.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture)));
        }
        var (plain, saving, stall) = (Typical(without), Typical(with), stalls.Max());
        var (step, overhead) = (plain.Average(), saving.Sum() / plain.Sum() - 1);
        output.WriteLine(FormattableString.Invariant($"{stalls.Count} background saves: longest stall {stall:F0} ms, mean {stalls.Average():F0} ms; a step takes {step:F0} ms"));
        output.WriteLine(FormattableString.Invariant($"{plain.Length} steps: {plain.Sum() / 1000:F2} s without, {saving.Sum() / 1000:F2} s with a save each {Interval} steps: {overhead:P1} more"));
        output.WriteLine(string.Join(", ", Enumerable.Range(0, Rounds).Select(round => FormattableString.Invariant($"{without[round].Sum() / 1000:F2} s, {with[round].Sum() / 1000:F2} s"))));
        Assert.True(stall <= step, $"a stall of {stall} ms with steps of {step} ms");
        Assert.True(overhead <= 0.03, $"{overhead:P1} more time");
    }

    /// <summary>Each step's median over all rounds: what else runs on the machine comes and goes, and batches differ in length.</summary>
    private static double[] Typical(List<double[]> rounds) =>
        [.. Enumerable.Range(0, rounds[0].Length).Select(step => rounds.Select(times => times[step]).Order().ElementAt(rounds.Count / 2))];

    private static async Task<List<JsonElement>> RunAsync(Workspace work, string name, params string[] more)
    {
        using var process = new MegatronProcess(work.Training(name, ["--train_iters", $"{Steps}", "--max_length", "256", "--output", "json", .. more]));
        var ended = (await process.EndAsync()).Expect(ExitCode.Ok);
        return [.. ended.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<JsonElement>(line))];
    }

    /// <summary>Milliseconds from one step to the next, saves included; item 0 is step 2. The last step is followed by a save that is waited for.</summary>
    private static double[] StepTimes(List<JsonElement> events)
    {
        var ends = events.Where(item => Kind(item) == "step").Select(item => item.GetProperty("time").GetDateTimeOffset()).ToList();
        return [.. ends.Zip(ends.Skip(1), (before, end) => (end - before).TotalMilliseconds)];
    }

    private static string? Kind(JsonElement item) => item.GetProperty("event").GetString();

    [GeneratedRegex(@"MiB copied in (\d+) ms", RegexOptions.CultureInvariant)]
    private static partial Regex Copied();
}
