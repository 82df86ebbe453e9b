using System.Globalization;
using System.Text.Json;
using Megatron.Client.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Silo;
using Megatron.Testing.Processes;
using StackExchange.Redis;

namespace Megatron.Faults;

/// <summary>Faults of the whole cluster: of its Redis, of all silos at once, of the silo that hosts the job's grain, of repeated messages.</summary>
/// <param name="log">Where each fault is told.</param>
/// <param name="cancellation">Ends a scenario.</param>
public sealed class ClusterScenarios(TextWriter log, CancellationToken cancellation)
{
    private const int NumSubmissions = 1000;
    private static readonly TimeSpan frozen = TimeSpan.FromSeconds(60);
    private static readonly TimeSpan pollInterval = TimeSpan.FromMilliseconds(50);

    /// <summary>R12: the silo that hosts the job's grain is killed.</summary>
    public async Task<GoalResult> CoordinatorAsync(int repetitions)
    {
        var (shown, firstStep) = (new Samples(), new Samples());
        await using var cluster = await FaultCluster.StartAsync(3, 1, cancellation);
        await using var console = cluster.Submit("coordinator", 2);
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console);
            var silo = await CoordinatorOfAsync(cluster, "coordinator");
            int from = console.Process.Lines.Count;
            var faultAt = Now;
            silo.Process.Signal(Posix.SigKill);
            // What the console still has in its pipe is older than the fault: only events written after it count.
            var (_, first) = await console.WaitForAsync("the job again", item => ConsoleProcess.TimeOf(item) > faultAt && Kind(item) != "console", FaultCluster.Patience, cancellation, from);
            var (step, _) = await console.WaitForAsync("a step after the loss", item => ConsoleProcess.IsStep(item, out _) && ConsoleProcess.TimeOf(item) > faultAt,
                FaultCluster.Patience, cancellation, from);
            shown.Add(first - faultAt);
            firstStep.Add(ConsoleProcess.TimeOf(step) - faultAt);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"R12 {i + 1}: {silo.Node} killed, shown again after {(first - faultAt).TotalSeconds:F2} s, first step after {(ConsoleProcess.TimeOf(step) - faultAt).TotalSeconds:F2} s"));
            Recovery.Explain(console, faultAt, ConsoleProcess.TimeOf(step) - faultAt, log);
            await silo.KillAsync();
            silo.StartAgain();
            await silo.ReadyAsync(cancellation);
        }
        return new("R12", "loss of the silo with the job's grain: console shows the job again; first step", "≤ 5 s; 95 % ≤ 5 s",
            $"{shown.Format("s")}; {firstStep.Format("s")}", shown.Count, shown.Max <= 5 && firstStep.Quantile(0.95) <= 5);
    }

    /// <summary>
    /// R13: Redis stands still for a minute. Such minutes and undisturbed ones alternate, and each is compared with the mean of its two neighbours: a machine whose speed
    /// drifts is no change of throughput.
    /// </summary>
    public async Task<GoalResult> FrozenRedisAsync(int repetitions)
    {
        var lost = new Samples();
        var change = new Samples();
        await using var cluster = await FaultCluster.StartAsync(2, 1, cancellation);
        await using var console = cluster.Submit("frozen", 2, "--save_interval", "1000000");
        await cluster.SettleAsync(console, 10);
        double before = await StepsDuringAsync(console, frozen);
        for (int i = 0; i < repetitions; i++)
        {
            int attempts = console.Events.Count(item => ConsoleProcess.IsAttempt(item, out _));
            cluster.Processes.Redis.Process.Signal(Posix.SigStop);
            double during = await StepsDuringAsync(console, frozen);
            cluster.Processes.Redis.Process.Signal(Posix.SigCont);
            await cluster.SettleAsync(console);
            double after = await StepsDuringAsync(console, frozen);
            var steps = cluster.Ledger("frozen").Select(line => line.GetProperty("step").GetInt64()).ToList();
            int lostSteps = steps.Count - steps.Distinct().Count();
            int newAttempts = console.Events.Count(item => ConsoleProcess.IsAttempt(item, out _)) - attempts;
            lost.Add(lostSteps + newAttempts);
            change.Add(100 * (during / ((before + after) / 2) - 1));
            log.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"R13 {i + 1}: {before} steps in the minute before, {during} while Redis stood still, {after} in the one after, {newAttempts} new attempts, {lostSteps} steps done twice"));
            before = after;
        }
        return new("R13", "Redis frozen for 60 s: steps lost; change of throughput", "0; median ≥ −2 %",
            string.Create(CultureInfo.InvariantCulture, $"{lost.Format("")}; median {change.Median:0.##} %, quartiles {change.Quantile(0.25):0.##} and {change.Quantile(0.75):0.##} %"), lost.Count,
            lost.Max == 0 && change.Median >= -2);
    }

    /// <summary>R14: Redis comes back empty.</summary>
    public async Task<GoalResult> EmptyRedisAsync(int repetitions)
    {
        var noticed = new Samples();
        bool neverSplit = true;
        for (int i = 0; i < repetitions; i++)
        {
            await using var cluster = await FaultCluster.StartAsync(2, 1, cancellation);
            await using var console = cluster.Submit("empty", 2);
            await cluster.SettleAsync(console);
            var redis = cluster.Processes.Redis;
            await redis.KillAsync(keepData: false);
            await redis.StartAgainAsync(cancellation);
            var backAt = Now;
            string outcome = await NoticeAsync(cluster);
            noticed.Add(Now - backAt);
            var stranger = cluster.Processes.Add(1);
            bool joined = await JoinsAsync(stranger);
            bool isSplit = joined && !outcome.Contains("rewritten", StringComparison.Ordinal);
            neverSplit &= !isSplit;
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"R14 {i + 1}: {outcome} after {(Now - backAt).TotalSeconds:F2} s; a new silo {(joined ? "joined" : "was refused")}"));
        }
        return new("R14", "Redis restarted empty: noticed; never a second cluster", "≤ 5 s", noticed.Format("s") + (neverSplit ? "" : ", SPLIT"), noticed.Count, neverSplit && noticed.Max <= 5);
    }

    /// <summary>R15: all silos are killed and started again.</summary>
    public async Task<GoalResult> ColdStartAsync(int repetitions)
    {
        var firstStep = new Samples();
        await using var cluster = await FaultCluster.StartAsync(2, 1, cancellation);
        await using var console = cluster.Submit("cold", 2);
        for (int i = 0; i < repetitions; i++)
        {
            await cluster.SettleAsync(console, 8);
            int from = console.Process.Lines.Count;
            foreach (var silo in cluster.Processes.Silos) silo.Process.Signal(Posix.SigKill);
            foreach (var silo in cluster.Processes.Silos) await silo.KillAsync();
            var startAt = Now;
            foreach (var silo in cluster.Processes.Silos) silo.StartAgain();
            var (step, _) = await console.WaitForAsync("first step after the cold start", item => ConsoleProcess.IsStep(item, out _) && ConsoleProcess.TimeOf(item) > startAt,
                FaultCluster.Patience, cancellation, from);
            firstStep.Add(ConsoleProcess.TimeOf(step) - startAt);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"R15 {i + 1}: first step {(ConsoleProcess.TimeOf(step) - startAt).TotalSeconds:F2} s after the silos were started"));
        }
        return new("R15", "all silos killed, cold start: first step", "≤ 25 s", firstStep.Format("s"), firstStep.Count, firstStep.Max <= 25);
    }

    /// <summary>R25: the same job is submitted a thousand times from two clients while it runs.</summary>
    public async Task<GoalResult> ManySubmissionsAsync(int repetitions)
    {
        var problems = new List<string>();
        await using var cluster = await FaultCluster.StartAsync(2, 1, cancellation);
        for (int i = 0; i < repetitions; i++)
        {
            string id = string.Create(CultureInfo.InvariantCulture, $"twice-{i}");
            await using var console = cluster.Submit(id, 2, "--train_iters", "12", "--save_interval", "4");
            await console.WaitForAsync("the first phase", item => Kind(item) == "phase", FaultCluster.Patience, cancellation);
            int repeated = await SubmitAgainAsync(cluster, id);
            int code = await console.Process.ExitAsync(FaultCluster.Patience, cancellation);
            var ledger = cluster.Ledger(id);
            var found = HistoryChecker.CheckLedger(ledger).Concat(HistoryChecker.CheckLogs(HistoryChecker.ReadLogs(cluster.Processes.LogFolder), id)).ToList();
            if (code != 0) found.Add($"the job ended with {code}");
            if (repeated != NumSubmissions) found.Add($"{NumSubmissions - repeated} submissions were not recognised");
            if (ledger.Count != 12) found.Add($"the ledger has {ledger.Count} lines for 12 steps");
            log.WriteLine($"R25 {i + 1}: {repeated} of {NumSubmissions} submissions recognised, {ledger.Count} ledger lines, {(found.Count == 0 ? "history consistent" : string.Join("; ", found))}");
            problems.AddRange(found);
        }
        return new("R25", "1,000 repeated submissions: one job, each step once", "exactly one", problems.Count == 0 ? "one job, history consistent" : $"{problems.Count} problems: {problems[0]}", repetitions, problems.Count == 0);
    }

    private async Task<int> SubmitAgainAsync(FaultCluster cluster, string id)
    {
        var address = ClusterAddress.Parse(cluster.Processes.Address);
        await using var left = await ClusterConnection.OpenAsync(address, TimeProvider.System, cancellation);
        await using var right = await ClusterConnection.OpenAsync(address, TimeProvider.System, cancellation);
        var spec = (await left.Grains.GetGrain<IJobGrain>(id).GetStatus()).Spec ?? throw new InvalidOperationException("the job has no spec");
        var answers = await Task.WhenAll(Enumerable.Range(0, NumSubmissions).Select(index => (index % 2 == 0 ? left : right).Grains.GetGrain<IJobGrain>(id).Submit(spec)));
        return answers.Count(answer => answer.Accepted);
    }

    private async Task<SiloProcess> CoordinatorOfAsync(FaultCluster cluster, string jobId)
    {
        await using var connection = await ClusterConnection.OpenAsync(ClusterAddress.Parse(cluster.Processes.Address), TimeProvider.System, cancellation);
        var job = connection.Grains.GetGrain<IJobGrain>(jobId);
        await job.GetStatus();
        var address = await connection.Grains.GetGrain<IManagementGrain>(0).GetActivationAddress(job)
            ?? throw new InvalidOperationException("the job's grain is not active");
        return cluster.Processes.Silos.Single(silo => silo.SiloPort == address.Endpoint.Port);
    }

    private async Task<double> StepsDuringAsync(ConsoleProcess console, TimeSpan time)
    {
        var start = Now;
        await Task.Delay(time, cancellation); // the measured interval itself
        return console.Events.Count(item => ConsoleProcess.IsStep(item, out _) && ConsoleProcess.TimeOf(item) >= start && ConsoleProcess.TimeOf(item) < start + time);
    }

    /// <summary>Waits until the silos' rows are back, or every silo has ended with a sentence.</summary>
    private async Task<string> NoticeAsync(FaultCluster cluster)
    {
        using var redis = await ConnectionMultiplexer.ConnectAsync(string.Create(CultureInfo.InvariantCulture, $"127.0.0.1:{cluster.Processes.Redis.Port}"));
        var deadline = Now + FaultCluster.Patience;
        while (Now < deadline)
        {
            if (cluster.Processes.Silos.All(silo => silo.Process.HasExited)) return "all silos ended";
            var members = await redis.GetDatabase().HashGetAllAsync(MembersKey);
            if (cluster.Processes.Silos.All(silo => members.Any(row => row.Name.ToString().Contains(string.Create(CultureInfo.InvariantCulture, $":{silo.SiloPort}@"), StringComparison.Ordinal))))
                return "rows rewritten";
            await Task.Delay(pollInterval, cancellation);
        }
        return "nothing happened";
    }

    private async Task<bool> JoinsAsync(SiloProcess silo)
    {
        var ready = silo.ReadyAsync(cancellation);
        try
        {
            await ready;
            return true;
        }
        catch (TimeoutException)
        {
            return false; // it ended, or is not ready after a minute
        }
    }

    private static string MembersKey => $"{ClusterAddress.ServiceId}/members/{ClusterAddress.ServiceId}";

    private static string? Kind(JsonElement item) => item.GetProperty("event").GetString();

    private static DateTimeOffset Now => TimeProvider.System.GetUtcNow();
}
