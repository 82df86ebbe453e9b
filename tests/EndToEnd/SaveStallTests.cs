using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a checkpoint in the background costs the training (reliability R18). Timed, so only by <c>./megatron test EndToEnd --large</c>.</summary>
public sealed partial class SaveStallTests(ITestOutputHelper output)
{
    private const int Steps = 81, Interval = 20;

    [Fact, Trait("Category", "large")]
    public async Task AsyncSave_EachTwentiethStep_StallsAtMostOneStepAndCostsAtMost3Percent()
    {
        using var work = new Workspace(rows: 400, layers: 6, hidden: 256);
        var (without, with, stalls, steps) = (double.MaxValue, double.MaxValue, new List<double>(), new List<double>());
        // Best of three, taken in turn: what else runs on the machine comes and goes.
        for (var round = 0; round < 3; round++)
        {
            without = Math.Min(without, Seconds(await RunAsync(work, $"without{round}", "--save_interval", "1000"), steps));
            var events = await RunAsync(work, $"with{round}", "--save_interval", $"{Interval}", "--async_save");
            with = Math.Min(with, Seconds(events, steps));
            stalls.AddRange(events.Where(item => Kind(item) == "notice").Select(item => Copied().Match(item.GetProperty("text").GetString() ?? ""))
                .Where(match => match.Success).Select(match => double.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture)));
        }
        var (step, stall, overhead) = (steps.Order().ElementAt(steps.Count / 2), stalls.Max(), with / without - 1);
        output.WriteLine(FormattableString.Invariant($"{stalls.Count} background saves: longest stall {stall:F0} ms, mean {stalls.Average():F0} ms; a step takes {step:F0} ms (median)"));
        output.WriteLine(FormattableString.Invariant($"{Steps - 1} steps: {without:F2} s without, {with:F2} s with a save each {Interval} steps: {overhead:P1} more"));
        Assert.True(stall <= step, $"a stall of {stall} ms with steps of {step} ms");
        Assert.True(overhead <= 0.03, $"{overhead:P1} more time");
    }

    private static async Task<List<JsonElement>> RunAsync(Workspace work, string name, params string[] more)
    {
        using var process = new MegatronProcess(work.Training(name, ["--train_iters", $"{Steps}", "--max_length", "256", "--output", "json", .. more]));
        var ended = (await process.EndAsync()).Expect(ExitCode.Ok);
        return [.. ended.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<JsonElement>(line))];
    }

    /// <summary>From the first step to the last but one: the last is followed by a save that is waited for.</summary>
    private static double Seconds(List<JsonElement> events, List<double> steps)
    {
        var times = events.Where(item => Kind(item) == "step").ToList();
        steps.AddRange(times.Skip(1).Select(item => item.GetProperty("step_time_ms").GetDouble()));
        return (times[Steps - 1].GetProperty("time").GetDateTimeOffset() - times[0].GetProperty("time").GetDateTimeOffset()).TotalSeconds;
    }

    private static string? Kind(JsonElement item) => item.GetProperty("event").GetString();

    [GeneratedRegex(@"MiB copied in (\d+) ms", RegexOptions.CultureInvariant)]
    private static partial Regex Copied();
}
