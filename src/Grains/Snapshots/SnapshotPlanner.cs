using System.Collections.Immutable;
using System.Globalization;
using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Snapshots;

/// <summary>What a silo that is left holds of a job.</summary>
/// <param name="GrainKey">Key of its <see cref="ISnapshotGrain"/>.</param>
/// <param name="Node">Its node, for the user.</param>
/// <param name="Holdings">Parts of snapshots.</param>
public sealed record SnapshotHolder(string GrainKey, string Node, IReadOnlyList<SnapshotHolding> Holdings);

/// <summary>The snapshot to go on from, and who writes which parts of it.</summary>
/// <param name="Attempt">The attempt that took it.</param>
/// <param name="Iteration">Its step.</param>
/// <param name="Writers">Grain keys and ranks, each rank once; the first one commits.</param>
/// <param name="Source">What it is, for the user: <c>the snapshot of step 7 held by n1, n2</c>.</param>
public sealed record SnapshotPlan(int Attempt, long Iteration, ImmutableArray<(string GrainKey, ImmutableArray<int> Ranks)> Writers, string Source);

/// <summary>Decides where copies of a rank's state go and what can be made of those that are left after a fault. Pure (DESIGN D9, D13).</summary>
public static class SnapshotPlanner
{
    // Sorts the steps that nobody has heard of after all others, the oldest first.
    private const long Late = 1L << 60;

    /// <summary>
    /// By rank: the rank that gets its snapshots. It is the one with the same place on the next node, nodes being taken in a circle in the order of
    /// their first ranks; where the next node has fewer ranks they take turns. With one node each rank is its own partner.
    /// </summary>
    public static ImmutableArray<int> Partners(LaunchPlan plan)
    {
        var nodes = plan.Ranks.GroupBy(rank => rank.Device.Node, StringComparer.Ordinal).Select(node => node.Select(rank => rank.Rank).ToList()).ToList();
        int[] partners = [.. Enumerable.Range(0, plan.WorldSize)];
        if (nodes.Count == 1)
            return [.. partners];
        for (int i = 0; i < nodes.Count; i++)
        {
            var next = nodes[(i + 1) % nodes.Count];
            for (int j = 0; j < nodes[i].Count; j++)
                partners[nodes[i][j]] = next[j % next.Count];
        }
        return [.. partners];
    }

    /// <summary>
    /// The newest snapshot after the newest checkpoint of which every rank's part is left; its parts are dealt out evenly. One of a step that the ranks
    /// have done and the job has not heard of is taken only when there is no other, because the loss of that step would be missing in the ledger.
    /// </summary>
    /// <param name="holders">Silos that are left.</param>
    /// <param name="checkpointIteration">Step of the newest checkpoint on disk.</param>
    /// <param name="reportedIteration">Last step that the job has heard of.</param>
    /// <returns>A plan; or null and why the snapshots that are left cannot be used, null when there are none.</returns>
    public static (SnapshotPlan? Plan, string? Problem) Plan(IReadOnlyList<SnapshotHolder> holders, long checkpointIteration, long reportedIteration)
    {
        var snapshots = holders.SelectMany(holder => holder.Holdings.Select(holding => (Holder: holder, Holding: holding)))
            .Where(pair => pair.Holding.Iteration > checkpointIteration)
            .GroupBy(pair => (pair.Holding.Attempt, pair.Holding.Iteration))
            .OrderByDescending(snapshot => snapshot.Key.Attempt).ThenBy(snapshot => Math.Abs(reportedIteration - snapshot.Key.Iteration) + (snapshot.Key.Iteration > reportedIteration ? Late : 0)).ToList();
        string? problem = null;
        foreach (var snapshot in snapshots)
        {
            var parts = snapshot.SelectMany(pair => pair.Holding.Ranks.Select(rank => (Rank: rank, pair.Holder))).ToLookup(part => part.Rank, part => part.Holder);
            var missing = Enumerable.Range(0, snapshot.First().Holding.WorldSize).Where(rank => !parts.Contains(rank)).ToList();
            if (missing.Count == 0)
                return (Deal(snapshot.Key.Attempt, snapshot.Key.Iteration, parts), null);
            problem ??= Text($"the snapshot of step {snapshot.Key.Iteration} is not whole: both copies of {(missing.Count == 1 ? "rank" : "ranks")} {string.Join(", ", missing)} are lost");
        }
        return (null, problem);
    }

    // Each part goes to the holder that has least to write so far, the first one in the order of keys.
    private static SnapshotPlan Deal(int attempt, long iteration, ILookup<int, SnapshotHolder> parts)
    {
        var dealt = new SortedDictionary<string, (SnapshotHolder Holder, List<int> Ranks)>(StringComparer.Ordinal);
        foreach (var part in parts.OrderBy(part => part.Key))
        {
            var writer = part.OrderBy(holder => dealt.TryGetValue(holder.GrainKey, out var known) ? known.Ranks.Count : 0)
                .ThenBy(holder => holder.GrainKey, StringComparer.Ordinal).First();
            if (!dealt.TryGetValue(writer.GrainKey, out var entry))
                dealt[writer.GrainKey] = entry = (writer, []);
            entry.Ranks.Add(part.Key);
        }
        string nodes = string.Join(", ", dealt.Values.Select(entry => entry.Holder.Node).Distinct(StringComparer.Ordinal));
        return new SnapshotPlan(
            attempt, iteration, [.. dealt.Select(pair => (pair.Key, pair.Value.Ranks.ToImmutableArray()))], Text($"the snapshot of step {iteration} held by {nodes}"));
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
