using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a checkpoint in the background costs the training (reliability R18). Timed, so only by <c>./megatron test EndToEnd --large</c>.</summary>
public sealed partial class SaveStallTests(ITestOutputHelper output)
{
    private const int Steps = 81, Interval = 20;

    /// <summary>Steps after a save in which it may still be written.</summary>
    private const int Slowed = 6;

    [Fact, Trait("Category", "large")]
    public async Task AsyncSave_EachTwentiethStep_StallsAtMostOneStepAndCostsAtMost3Percent()
    {
        using var work = new Workspace(rows: 400, layers: 6, hidden: 256);
        var (without, with, stalls, after, between) = (double.MaxValue, double.MaxValue, new List<double>(), new List<double>(), new List<double>());
        // Best of three, taken in turn: what else runs on the machine comes and goes.
        for (var round = 0; round < 3; round++)
        {
            without = Math.Min(without, StepTimes(await RunAsync(work, $"without{round}", "--save_interval", "1000")).Sum());
            var events = await RunAsync(work, $"with{round}", "--save_interval", $"{Interval}", "--async_save");
            var times = StepTimes(events);
            with = Math.Min(with, times.Sum());
            // The last save is followed by too few steps.
            for (var save = Interval; save + Interval < Steps; save += Interval)
            {
                after.AddRange(times[(save - 1)..(save - 1 + Slowed)]);
                between.AddRange(times[(save - 1 + Slowed)..(save - 1 + Interval)]);
            }
            stalls.AddRange(events.Where(item => Kind(item) == "notice").Select(item => Copied().Match(item.GetProperty("text").GetString() ?? ""))
                .Where(match => match.Success).Select(match => double.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture)));
        }
        // Two whole runs differ by more than a save costs; steps of the same run can be compared.
        var (step, stall) = (between.Average(), stalls.Max());
        var overhead = Slowed * (after.Average() / step - 1) / Interval;
        output.WriteLine(FormattableString.Invariant($"{stalls.Count} background saves: longest stall {stall:F0} ms, mean {stalls.Average():F0} ms; a step takes {step:F0} ms (mean)"));
        output.WriteLine(FormattableString.Invariant($"the {Slowed} steps after a save take {Slowed * (after.Average() - step):F0} ms longer: {overhead:P1} more time with a save each {Interval} steps"));
        output.WriteLine(FormattableString.Invariant($"whole runs of {Steps - 1} steps, best of 3: {without / 1000:F2} s without, {with / 1000:F2} s with saves"));
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
