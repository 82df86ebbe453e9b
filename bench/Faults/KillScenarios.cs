using System.Globalization;
using Megatron.Testing.Processes;

namespace Megatron.Faults;

/// <summary>Silos that are killed, frozen or hung while a job trains on them.</summary>
/// <param name="random">Chooses the moment inside a step.</param>
/// <param name="log">Where each fault is told.</param>
/// <param name="cancellation">Ends a scenario.</param>
public sealed class KillScenarios(Random random, TextWriter log, CancellationToken cancellation)
{
    private const int LongestPauseMs = 300;

    /// <summary>
    /// R1, R4a, R5c: kill -9 of a silo that hosts a rank, three silos, a job of two ranks: the third is the standby. The killed silo comes back
    /// before the next fault.
    /// </summary>
    public async Task<IReadOnlyList<GoalResult>> KillAsync(int repetitions)
    {
        var (detection, firstStep, recomputed, problems) = await RepeatAsync(repetitions, Posix.SigKill);
        return
        [
            new("R1", "kill -9 of a silo: seen by the job", "median ≤ 0.6 s, 99 % ≤ 2 s", detection.Format("s"), detection.Count,
                detection.Median <= 0.6 && detection.Quantile(0.99) <= 2),
            new("R4a", "kill -9 with a standby: first new step", "95 % ≤ 5 s", firstStep.Format("s"), firstStep.Count, firstStep.Quantile(0.95) <= 5),
            new("R5c", "steps computed twice per fault, a checkpoint every 5 steps and no snapshot", "≤ 5", WithProblems(recomputed, problems), recomputed.Count, recomputed.Max <= 5 && problems.Count == 0),
        ];
    }

    /// <summary>R5: the same with a peer snapshot each step and no checkpoint at all.</summary>
    public async Task<IReadOnlyList<GoalResult>> KillWithSnapshotsAsync(int repetitions)
    {
        var (_, firstStep, recomputed, problems) = await RepeatAsync(repetitions, Posix.SigKill, "--peer_snapshot_interval", "1", "--save_interval", "1000000");
        return
        [
            new("R5", "steps computed twice per fault, a peer snapshot each step and no checkpoint", "≤ 1", WithProblems(recomputed, problems), recomputed.Count, recomputed.Max <= 1 && problems.Count == 0),
            new("R4s", "kill -9 with a standby, peer snapshots: first new step", "95 % ≤ 5 s", firstStep.Format("s"), firstStep.Count, firstStep.Quantile(0.95) <= 5),
        ];
    }

    /// <summary>R2: a silo is frozen by SIGSTOP.</summary>
    public async Task<IReadOnlyList<GoalResult>> FreezeAsync(int repetitions)
    {
        var (detection, firstStep, _, _) = await RepeatAsync(repetitions, Posix.SigStop);
        return
        [
            new("R2", "SIGSTOP of a silo: seen by the job", "99 % ≤ 3 s", detection.Format("s"), detection.Count, detection.Quantile(0.99) <= 3),
            new("R2+", "SIGSTOP of a silo: first new step", "", firstStep.Format("s"), firstStep.Count, true),
        ];
    }

    /// <summary>R3: the compute thread of one rank stands still, its process runs.</summary>
    public async Task<GoalResult> HangAsync(int repetitions)
    {
        const string What = "compute thread hangs, process healthy: seen by the job", Must = "≤ max(3 mean steps, 3 s)";
        var detection = new Samples();
        double limit = 0;
        await using var cluster = await FaultCluster.StartAsync(3, 1, cancellation);
        await using var console = cluster.Submit("hang", 2);
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console, 6);
            var silo = Hosts(cluster, console, i);
            int from = console.Process.Lines.Count;
            NativeThreads thread;
            try
            {
                thread = await NativeThreads.StopAsync(silo.Process.Id, "rank-0");
            }
            catch (InvalidOperationException problem)
            {
                return GoalResult.Unmeasured("R3", What, Must, problem.Message);
            }
            using (thread)
            {
                var faultAt = Now;
                double meanStep = MeanStep(console);
                var recovery = await Recovery.ObserveAsync(console, faultAt, from, cancellation);
                Tell("R3", i, recovery, console, faultAt);
                detection.Add(recovery.Detection);
                limit = Math.Max(limit, Math.Max(3, 3 * meanStep));
                silo.Process.Signal(Posix.SigKill); // a traced process that was killed is gone only after its tracer let go
            }
            await silo.KillAsync();
            await BringBackAsync(silo);
        }
        return new("R3", What, Must, detection.Format("s"), detection.Count, detection.Max <= limit);
    }

    /// <summary>R4b: no standby, the job cannot shrink; the killed silo is started again at once.</summary>
    public async Task<GoalResult> RestartAsync(int repetitions)
    {
        var firstStep = new Samples();
        await using var cluster = await FaultCluster.StartAsync(2, 1, cancellation);
        await using var console = cluster.Submit("restart", 2, "--tensor_model_parallel_size", "2");
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console);
            var silo = cluster.Processes.Silos[i % 2];
            await PauseAsync();
            int from = console.Process.Lines.Count;
            var faultAt = Now;
            await silo.KillAsync();
            silo.StartAgain();
            var recovery = await Recovery.ObserveAsync(console, faultAt, from, cancellation);
            Tell("R4b", i, recovery, console, faultAt);
            firstStep.Add(recovery.FirstStep);
        }
        return new("R4b", "kill -9, silo started again: first new step", "95 % ≤ 12 s", firstStep.Format("s"), firstStep.Count, firstStep.Quantile(0.95) <= 12);
    }

    /// <summary>R16: SIGTERM to a silo with a rank: its job saves, the silo exits with 0, the job goes on.</summary>
    public async Task<GoalResult> DrainAsync(int repetitions)
    {
        var exit = new Samples();
        bool allSaved = true;
        await using var cluster = await FaultCluster.StartAsync(3, 1, cancellation);
        await using var console = cluster.Submit("drain", 2);
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console);
            var silo = Hosts(cluster, console, i);
            int from = console.Process.Lines.Count;
            await PauseAsync();
            var faultAt = Now;
            silo.Process.Signal(Posix.SigTerm);
            int code = await silo.Process.ExitAsync(FaultCluster.Patience, cancellation);
            var took = Now - faultAt;
            var saved = console.Events.Any(item => item.GetProperty("event").GetString() == "checkpoint" && ConsoleProcess.TimeOf(item) >= faultAt);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"R16 {i + 1}: exit code {code} after {took.TotalSeconds:F2} s, checkpoint {(saved ? "saved" : "missing")}"));
            exit.Add(took);
            allSaved &= saved && code == 0;
            await console.WaitForAsync("the next attempt", item => ConsoleProcess.IsAttempt(item, out _), FaultCluster.Patience, cancellation, from);
            await BringBackAsync(silo);
        }
        return new("R16", "SIGTERM of a silo: checkpoint committed, exit code 0", "≤ 8 s", exit.Format("s") + (allSaved ? "" : ", not always saved"), exit.Count, allSaved && exit.Max <= 8);
    }

    private async Task<(Samples Detection, Samples FirstStep, Samples Recomputed, IReadOnlyList<string> Problems)> RepeatAsync(int repetitions, int signal, params string[] words)
    {
        var (detection, firstStep, recomputed) = (new Samples(), new Samples(), new Samples());
        string name = signal != Posix.SigKill ? "freeze" : words.Length == 0 ? "kill" : "snapshot";
        await using var cluster = await FaultCluster.StartAsync(3, 1, cancellation);
        await using var console = cluster.Submit(name, 2, words);
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console);
            var silo = Hosts(cluster, console, i);
            await PauseAsync();
            int from = console.Process.Lines.Count;
            var faultAt = Now;
            silo.Process.Signal(signal);
            var recovery = await Recovery.ObserveAsync(console, faultAt, from, cancellation);
            Tell(name, i, recovery, console, faultAt);
            detection.Add(recovery.Detection);
            firstStep.Add(recovery.FirstStep);
            recomputed.Add(recovery.NumRecomputed);
            await silo.KillAsync();
            await BringBackAsync(silo);
        }
        var problems = HistoryChecker.CheckLedger(cluster.Ledger(name));
        log.WriteLine($"{name}: {(problems.Count == 0 ? "history consistent" : string.Join("; ", problems))}");
        return (detection, firstStep, recomputed, problems);
    }

    private static string WithProblems(Samples recomputed, IReadOnlyList<string> problems) =>
        recomputed.Format("steps") + (problems.Count == 0 ? "" : string.Create(CultureInfo.InvariantCulture, $", {problems.Count} problems in the history"));

    /// <summary>A silo that hosts a rank of the newest attempt, in turn; the plan's sentence names the nodes before it says what it goes on from.</summary>
    private static SiloProcess Hosts(FaultCluster cluster, ConsoleProcess console, int turn)
    {
        string plan = console.Events.Last(item => ConsoleProcess.IsAttempt(item, out _)).GetProperty("reason").GetString() ?? "";
        plan = plan.Split(';')[0];
        var hosts = cluster.Processes.Silos.Where(silo => plan.Contains(silo.Node + " ", StringComparison.Ordinal)
            || plan.Contains(silo.Node + ":", StringComparison.Ordinal) || plan.EndsWith(silo.Node, StringComparison.Ordinal)).ToList();
        return hosts.Count > 0 ? hosts[turn % hosts.Count] : throw new InvalidOperationException($"the plan names no silo: {plan}");
    }

    private async Task BringBackAsync(SiloProcess silo)
    {
        silo.StartAgain();
        await silo.ReadyAsync(cancellation);
    }

    private Task PauseAsync() => Task.Delay(random.Next(LongestPauseMs), cancellation);

    private void Tell(string name, int index, Recovery recovery, ConsoleProcess console, DateTimeOffset faultAt)
    {
        log.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{name} {index + 1}: seen after {recovery.Detection.TotalSeconds:F2} s, first step after {recovery.FirstStep.TotalSeconds:F2} s, {recovery.NumRecomputed} steps again; {recovery.Plan}"));
        Recovery.Explain(console, faultAt, recovery.FirstStep, log);
    }

    private static double MeanStep(ConsoleProcess console) => console.Events.Where(item => ConsoleProcess.IsStep(item, out _))
        .TakeLast(10).Average(item => item.GetProperty("step_time_ms").GetDouble()) / 1000;

    private static DateTimeOffset Now => TimeProvider.System.GetUtcNow();
}
