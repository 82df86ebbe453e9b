using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a checkpoint in the background costs the training (reliability R18). Timed, so only by <c>./megatron test EndToEnd --large</c>.</summary>
public sealed partial class SaveStallTests(ITestOutputHelper output)
{
    // The rows repeat after 50 steps, so that saves come after long and short batches alike.
    private const int Rounds = 3, NumSaves = 15, Interval = 12, Steps = (NumSaves + 1) * Interval + 1;

    /// <summary>Steps after a save in which it may still be written, the save's own stall included.</summary>
    private const int Slowed = 7;

    /// <summary>R18 asks for the cost of a save in so many steps.</summary>
    private const int StepsOfGoal = 20;

    // Two whole runs differ by several percent whatever they do, so steps after a save are compared with the steps between saves of the same run.
    [Fact, Trait("Category", "large")]
    public async Task AsyncSave_EachTwentiethStep_StallsAtMostOneStepAndCostsAtMost3Percent()
    {
        using var work = new Workspace(rows: 400, layers: 6, hidden: 256);
        var (after, between, stalls) = (new List<double>(), new List<double>(), new List<double>());
        for (var round = 0; round < Rounds; round++)
        {
            var events = await RunAsync(work, $"run{round}", "--save_interval", $"{Interval}", "--async_save", "--save_total_limit", "2");
            var times = StepTimes(events);
            for (var save = Interval; save <= NumSaves * Interval; save += Interval)
            {
                after.AddRange(times[(save - 1)..(save - 1 + Slowed)]);
                between.AddRange(times[(save - 1 + Slowed)..(save - 1 + Interval)]);
            }
            stalls.AddRange(events.Where(item => Kind(item) == "notice").Select(item => Copied().Match(item.GetProperty("text").GetString() ?? ""))
                .Where(match => match.Success).Select(match => double.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture)));
        }
        var (step, stall) = (between.Average(), stalls.Max());
        var cost = Slowed * (after.Average() - step);
        var overhead = cost / (StepsOfGoal * step);
        output.WriteLine(FormattableString.Invariant($"{stalls.Count} background saves: longest stall {stall:F0} ms, mean {stalls.Average():F0} ms; a step between saves takes {step:F0} ms (mean)"));
        output.WriteLine(FormattableString.Invariant($"a save costs {cost:F0} ms: {overhead:P1} of {StepsOfGoal} steps"));
        Assert.True(stall <= step, $"a stall of {stall} ms with steps of {step} ms");
        Assert.True(overhead <= 0.03, $"{overhead:P1} more time");
    }

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
