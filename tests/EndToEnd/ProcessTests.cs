using System.Globalization;
using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>What only a process of its own can show: signals, memory over time, the time to the first step.</summary>
[Collection<Alone>]
public sealed class ProcessTests
{
    private const string StepMark = "] iteration ";

    private static readonly TimeSpan allowedStart = TimeSpan.FromSeconds(2);

    [Theory]
    [InlineData("TERM")]
    [InlineData("INT")]
    public async Task Signal_WhileTraining_SavesAndExitsWith0AndTheRunContinues(string signal)
    {
        using var work = new Workspace();
        string[] words = ["--train_iters", "400", "--hidden_dropout", "0.1", "--lr_decay_style", "constant"];
        using var process = new MegatronProcess(work.Training("out", words));
        await process.ReadUntilAsync(line => line.Contains(StepMark, StringComparison.Ordinal) && Iteration(line) >= 3);
        await process.SignalAsync(signal);
        var ended = (await process.EndAsync()).Expect(ExitCode.Ok);
        Assert.Contains("Stopping: ", ended.Output, StringComparison.Ordinal);
        Assert.Equal("", ended.Error);
        var run = Directory.GetDirectories(work.Path("out")).Single();
        var saved = int.Parse(Path.GetFileName(Directory.GetDirectories(run, "iter_*").Single())[5..], CultureInfo.InvariantCulture);
        Assert.InRange(saved, 3, 399);

        // The continued run is the run that nobody interrupted.
        var last = (saved + 2).ToString(CultureInfo.InvariantCulture);
        var resumed = await work.TrainAsync("out", [.. words, "--train_iters", last, "--resume"]);
        var whole = await work.TrainAsync("whole", [.. words, "--train_iters", last]);
        Assert.Equal(RunFiles.Losses(whole.RunFolder)[saved..], RunFiles.Losses(resumed.RunFolder));
    }

    [Fact]
    public async Task LocalJob_FirstGrainCallToFirstStep_TakesAtMost2Seconds()
    {
        const int MaxNumRuns = 3;
        using var work = new Workspace();
        var best = TimeSpan.MaxValue;
        // What the start needs it needs every time; what another program's work adds it does not.
        for (int run = 0; run < MaxNumRuns && best > allowedStart; run++)
        {
            var time = await StartTimeAsync(work, FormattableString.Invariant($"out{run}"));
            Print($"first grain call to the end of the first step: {time.TotalSeconds:F2} s (cold process)");
            if (time < best) best = time;
        }
        Assert.InRange(best, TimeSpan.Zero, allowedStart);
    }

    private static async Task<TimeSpan> StartTimeAsync(Workspace work, string save)
    {
        using var process = new MegatronProcess(work.Training(save, "--train_iters", "3", "--output", "json"));
        var ended = (await process.EndAsync()).Expect(ExitCode.Ok);
        var events = ended.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<JsonElement>(line)).ToList();
        var submitted = events.First(item => item.GetProperty("event").GetString() == "phase").GetProperty("time").GetDateTimeOffset();
        var stepped = events.First(item => item.GetProperty("event").GetString() == "step").GetProperty("time").GetDateTimeOffset();
        return stepped - submitted;
    }

    // Rows of equal length, so that every step needs the same. A tensor lost per step (the smallest activation here: 128 tokens x 128 x 4 bytes
    // = 64 KiB) would cost 11 MiB, one of each micro-batch and layer far more. What is resident rises and falls as free memory is given back, so the
    // kernel's own record of the highest is compared: of iterations 6 to 25 and of the last 20.
    [Fact]
    public async Task Memory_AfterStep5Of200_DoesNotGrow()
    {
        const int AllowedKiB = 2 * 1024;
        using var work = new Workspace(layers: 4, hidden: 128);
        await File.WriteAllLinesAsync(work.Rows, Enumerable.Range(0, 80).Select(i => Sum(10 + (i % 17), 10 + (i / 17))), TestContext.Current.CancellationToken);
        var grownKiB = await GrowthKiBAsync(work, "out");
        // What is lost is lost in every run; what another program's work delays is not.
        if (grownKiB > AllowedKiB) grownKiB = await GrowthKiBAsync(work, "again");
        Assert.True(grownKiB <= AllowedKiB, $"resident memory grew by {grownKiB} KiB after step 5");

        static string Sum(int a, int b) => JsonSerializer.Serialize(new { query = $"What is {a} plus {b}?", response = $"{a} plus {b} is {a + b}." });
    }

    private static async Task<int> GrowthKiBAsync(Workspace work, string save)
    {
        using var process = new MegatronProcess(work.Training(save, "--train_iters", "200", "--save_interval", "1000"));
        await ReachAsync(process, 5);
        process.ForgetPeakResident();
        await ReachAsync(process, 25);
        var early = process.PeakResidentKiB();
        await ReachAsync(process, 179);
        process.ForgetPeakResident();
        await ReachAsync(process, 199);
        var late = process.PeakResidentKiB();
        (await process.EndAsync()).Expect(ExitCode.Ok);
        Print($"highest of iterations 6 to 25: {early / 1024.0:F1} MiB, of 180 to 199: {late / 1024.0:F1} MiB, grown by {(late - early) / 1024.0:F1} MiB");
        return late - early;
    }

    private static async Task ReachAsync(MegatronProcess process, int iteration)
    {
        string line;
        do
            line = await process.ReadUntilAsync(line => line.Contains(StepMark, StringComparison.Ordinal));
        while (Iteration(line) < iteration);
    }

    private static int Iteration(string line)
    {
        var begin = line.IndexOf(StepMark, StringComparison.Ordinal) + StepMark.Length;
        return int.Parse(line[begin..line.IndexOf('/', begin)].Trim(), CultureInfo.InvariantCulture);
    }

    private static void Print(FormattableString line) => TestContext.Current.TestOutputHelper?.WriteLine(FormattableString.Invariant(line));
}
