using System.Globalization;
using Megatron.Testing.ControlPlane;

namespace Megatron.Faults;

/// <summary>What the control plane costs, with fake ranks in this process.</summary>
/// <param name="log">Where each measurement is told.</param>
/// <param name="cancellation">Ends the scenario.</param>
public sealed class ControlPlaneScenarios(TextWriter log, CancellationToken cancellation)
{
    /// <summary>C1: processor time of 64 ranks' reports and what they add to a step.</summary>
    public async Task<GoalResult> ReportsAsync(int repetitions)
    {
        var (share, added) = (new Samples(), new Samples());
        for (int i = 0; i < repetitions; i++)
        {
            var cost = await ReportLoad.MeasureAsync(numRanks: 64, numSteps: 300, cancellation);
            share.Add(100 * cost.CoreShareAt(10));
            added.Add(cost.ReportTime.TotalMilliseconds);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"C1 {i + 1}: {cost}"));
        }
        return new("C1", "64 ranks, 10 steps/s: share of a core; added to a step", "< 5 %; < 1 ms", $"{share.Format("%")}; {added.Format("ms")}", share.Count, share.Max < 5 && added.Max < 1);
    }

    /// <summary>C2: 512 ranks on 64 nodes start, one node is lost, the others go on.</summary>
    public async Task<GoalResult> LossAsync(int repetitions)
    {
        var (total, recovery) = (new Samples(), new Samples());
        for (int i = 0; i < repetitions; i++)
        {
            var times = await LargeCluster.MeasureLossAsync(numNodes: 64, devicesPerNode: 8, cancellation);
            total.Add(times.Start + times.Recovery);
            recovery.Add(times.Recovery);
            log.WriteLine(string.Create(CultureInfo.InvariantCulture, $"C2 {i + 1}: {times}"));
        }
        return new("C2", "64 nodes, 512 ranks: start, one node lost, the others run; of which recovery", "< 10 s", $"{total.Format("s")}; {recovery.Format("s")}", total.Count, total.Max < 10);
    }
}
