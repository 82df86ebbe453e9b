using Megatron.Grains.Cluster;

namespace Megatron.Grains.Jobs;

/// <summary>How the cores of a machine are shared out among the ranks of all its silos. Pure (DESIGN D9).</summary>
public static class CoreShares
{
    /// <summary>
    /// The plan with each rank's <see cref="RankPlacement.NumThreads"/>: the cores of its machine divided by the ranks that run there, whatever their
    /// silo and their job, and at least 1. Devices without a rank get no share.
    /// </summary>
    /// <param name="silosOfOthers">The silo of each rank of other jobs, once for each rank.</param>
    /// <param name="machines">The machine of each silo; ranks on a silo that is not in it keep no share, and their worker decides.</param>
    public static LaunchPlan Divide(LaunchPlan plan, IEnumerable<string> silosOfOthers, IReadOnlyDictionary<string, HostMachine> machines)
    {
        var numRanks = plan.Ranks.Select(rank => rank.Silo).Concat(silosOfOthers).Where(machines.ContainsKey)
            .CountBy(silo => machines[silo].Name, StringComparer.Ordinal).ToDictionary(StringComparer.Ordinal);
        return plan with
        {
            Ranks = [.. plan.Ranks.Select(rank => machines.TryGetValue(rank.Silo, out var machine)
                ? rank with { NumThreads = Math.Max(1, machine.NumCores / numRanks[machine.Name]) }
                : rank)],
        };
    }
}
