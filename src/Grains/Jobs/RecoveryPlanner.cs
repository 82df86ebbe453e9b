using System.Globalization;
using Megatron.Grains.Cluster;

namespace Megatron.Grains.Jobs;

/// <summary>
/// Decides with how many data-parallel replicas a job starts or goes on, on the devices that are left. Pure (DESIGN D9, D13): the global batch and
/// the order of the data never change; tensor, pipeline, context and expert groups are kept whole and move to free devices.
/// </summary>
public static class RecoveryPlanner
{
    /// <summary>The plan with the most replicas that fits, up to the number asked for.</summary>
    /// <param name="devices">Devices that the job may use.</param>
    /// <returns>A plan and what it is, or null and what is missing.</returns>
    public static (LaunchPlan? Plan, string Reason) Plan(JobSpec spec, IReadOnlyCollection<ClusterDevice> devices)
    {
        var grid = spec.Grid;
        if (spec.WorldSize < 1 || grid.ReplicaSize < 1 || spec.WorldSize % grid.ReplicaSize != 0)
        {
            return (null, grid.ReplicaSize == grid.PipelineSize
                ? Text($"The number of ranks {spec.WorldSize} is not a positive multiple of the pipeline size {grid.PipelineSize}; change one of them.")
                : Text($"The number of ranks {spec.WorldSize} is not a positive multiple of the {grid.ReplicaSize} ranks of one model replica; change one of them."));
        }
        int wanted = spec.WorldSize / grid.ReplicaSize;
        int least = spec.IsElastic ? 1 : wanted;
        for (int replicas = wanted; replicas >= least; replicas--)
        {
            if ((replicas == wanted || grid.Allows(replicas)) && LaunchPlanner.Place(grid, replicas, devices) is { } plan)
                return (plan, Describe(plan, replicas, wanted));
        }
        return (null, spec.IsElastic
            ? Text($"one replica needs {SmallestWorld(grid, wanted)} devices, {devices.Count} are free: waiting for devices")
            : Text($"The job asks for {spec.WorldSize} ranks, but there are {devices.Count} free devices; start fewer ranks (NPROC_PER_NODE)."));
    }

    private static int SmallestWorld(JobLayout grid, int wanted) =>
        grid.ReplicaSize * (Enumerable.Range(1, wanted).Where(grid.Allows).Cast<int?>().FirstOrDefault() ?? wanted);

    private static string Describe(LaunchPlan plan, int replicas, int wanted)
    {
        var nodes = plan.Ranks.GroupBy(rank => rank.Device.Node, StringComparer.Ordinal).OrderBy(node => node.Key, StringComparer.Ordinal).ToList();
        string where = nodes.Count == 1
            ? "node " + nodes[0].Key
            : "nodes " + string.Join(", ", nodes.Select(node => Text($"{node.Key} ({node.Count()})")));
        string ranks = Text($"{plan.WorldSize} {(plan.WorldSize == 1 ? "rank" : "ranks")} on {where}");
        return replicas == wanted ? ranks : Text($"{ranks}: {replicas} of {wanted} data-parallel replicas, the same global batch");
    }

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
