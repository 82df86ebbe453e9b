using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Testing.Processes;

namespace Megatron.Faults;

/// <summary>
/// <c>megatron faults bench</c>: injects each kind of fault into clusters of real processes, many times, and prints what was measured beside its
/// goal. Exit code 1 when a goal is missed.
/// </summary>
public static class FaultsBench
{
    private const int DefaultRepetitions = 20;
    private const int DefaultKills = 50;
    private static readonly string[] groups = ["R1", "R2", "R3", "R4b", "R5", "R6", "R10", "R12", "R13", "R14", "R15", "R16", "R25", "C1", "C2"];

    private static readonly WordOption[] options =
    [
        new("repetitions", "number", "Faults of each kind; default: 50 for R1, 20 for the others."),
        new("goals", "R1,R2", "Which goals; R1 brings R4a with it. Default: all."),
        new("device", "cpu|cuda", "Where the ranks compute; with cuda the silos share the first GPU. Default: cpu."),
        new("log_folder", "folder", "Where the log files of the silos go when a scenario is over; default: they are deleted."),
        new("seed", "number", "Seed of the random moments; default: by the clock, printed."),
    ];

    /// <summary>Runs the bench; returns an <see cref="ExitCode"/>.</summary>
    /// <exception cref="ConfigException">The words cannot be used.</exception>
    public static async Task<int> RunAsync(IReadOnlyList<string> words, TextWriter output, CancellationToken cancellation)
    {
        var given = WordOptions.Parse(words, options);
        if (given.Positional is not ["bench"])
            throw new ConfigException("CFG012", $"megatron faults {string.Join(' ', given.Positional)} is not known; use megatron faults bench.");
        if (!RedisServer.IsInstalled) throw new ConfigException("CTRL001", RedisServer.SkipReason + ".");
        FaultCluster.LogsTo = given.Text("log_folder");
        FaultCluster.Device = given.Choice("device", "cpu", "cuda");
        int? repetitions = given.Number("repetitions", 1, 10_000);
        string[] goals = given.Text("goals")?.Split(',') ?? groups;
        if (goals.FirstOrDefault(goal => !groups.Contains(goal)) is { } unknown)
            throw new ConfigException("CFG003", $"--goals = {unknown} is not known; use {OptionValue.Alternatives(groups)}.");
        int seed = given.Number("seed", 0, int.MaxValue) ?? (int)(TimeProvider.System.GetUtcNow().ToUnixTimeSeconds() % int.MaxValue);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"seed {seed}, {Environment.ProcessorCount} cores"));
        var results = new List<GoalResult>();
        foreach (string goal in goals)
        {
            var random = new Random(seed);
            results.AddRange(await MeasureAsync(goal, repetitions ?? (goal == "R1" ? DefaultKills : DefaultRepetitions), random, output, cancellation));
        }
        GoalTable.Write(output, results);
        return results.Any(result => result.IsMet == false) ? ExitCode.Failed : ExitCode.Ok;
    }

    private static async Task<IReadOnlyList<GoalResult>> MeasureAsync(string goal, int repetitions, Random random, TextWriter output, CancellationToken cancellation)
    {
        var kills = new KillScenarios(random, output, cancellation);
        var cluster = new ClusterScenarios(output, cancellation);
        try
        {
            return goal switch
            {
                "R1" => await kills.KillAsync(repetitions),
                "R2" => await kills.FreezeAsync(repetitions),
                "R3" => [await kills.HangAsync(repetitions)],
                "R4b" => [await kills.RestartAsync(repetitions)],
                "R5" => await kills.KillWithSnapshotsAsync(repetitions),
                "R6" => await new BitwiseScenario(random, output, cancellation).RunAsync(repetitions),
                "R10" => [await new IsolationScenario(output, cancellation).RunAsync(repetitions)],
                "R12" => [await cluster.CoordinatorAsync(repetitions)],
                "R13" => [await cluster.FrozenRedisAsync(repetitions)],
                "R14" => [await cluster.EmptyRedisAsync(repetitions)],
                "R15" => [await cluster.ColdStartAsync(repetitions)],
                "R16" => [await kills.DrainAsync(repetitions)],
                "C1" => [await new ControlPlaneScenarios(output, cancellation).ReportsAsync(repetitions)],
                "C2" => [await new ControlPlaneScenarios(output, cancellation).LossAsync(repetitions)],
                "R25" => [await cluster.ManySubmissionsAsync(repetitions)],
                _ => throw new ArgumentOutOfRangeException(nameof(goal), goal, "unknown goal"),
            };
        }
        catch (TimeoutException problem)
        {
            // One scenario that stands still must not hide what the others measured.
            output.WriteLine($"{goal}: {problem.Message}");
            return [new GoalResult(goal, "the scenario", "runs to its end", problem.Message.Split('\n')[0], 0, false)];
        }
        catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
        {
            return [GoalResult.Unmeasured(goal, "the scenario", "runs to its end", "interrupted")];
        }
    }
}
