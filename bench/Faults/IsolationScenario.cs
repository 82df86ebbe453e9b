using System.Globalization;
using Megatron.Testing.Processes;

namespace Megatron.Faults;

/// <summary>
/// R10: a silo is cut from its peers and from Redis at once, in a network namespace of its own. It must stop every side effect and end itself.
/// </summary>
/// <param name="log">Where each fault is told.</param>
/// <param name="cancellation">Ends the scenario.</param>
public sealed class IsolationScenario(TextWriter log, CancellationToken cancellation)
{
    private const string What = "silo without peers and Redis: ends itself; checkpoints it committed after 3 s", Must = "≤ 10 s; 0";

    /// <summary>Isolates a silo that hosts a rank, several times.</summary>
    public async Task<GoalResult> RunAsync(int repetitions)
    {
        var (exit, late) = (new Samples(), new Samples());
        for (int i = 0; i < repetitions; i++)
        {
            await using var network = await IsolatedNetwork.TryCreateAsync(3, cancellation);
            if (network is null) return GoalResult.Unmeasured("R10", What, Must, "network namespaces are not allowed here (root and the ip program are needed)");
            await using var cluster = await FaultCluster.StartAsync(network, cancellation);
            await using var console = cluster.Submit("isolated", 2, "--save_interval", "2", "--save_total_limit", "1000");
            await cluster.SettleAsync(console);
            var silo = cluster.Processes.Silos[0];
            int from = console.Process.Lines.Count;
            await network.CutAsync(0, cancellation);
            var faultAt = Now;
            await silo.Process.ExitAsync(FaultCluster.Patience, cancellation);
            var ended = Now - faultAt;
            await console.WaitForAsync("the next attempt", item => ConsoleProcess.IsAttempt(item, out _), FaultCluster.Patience, cancellation, from);
            await cluster.SettleAsync(console);
            var problems = HistoryChecker.CheckLedger(cluster.Ledger("isolated"));
            exit.Add(ended);
            late.Add(problems.Count);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"R10 {i + 1}: the silo ended {ended.TotalSeconds:F2} s after the cut; {(problems.Count == 0 ? "history consistent" : string.Join("; ", problems))}"));
        }
        return new("R10", What, Must, $"{exit.Format("s")}; {late.Format("")}", exit.Count, exit.Max <= 10 && late.Max == 0);
    }

    private static DateTimeOffset Now => TimeProvider.System.GetUtcNow();
}
