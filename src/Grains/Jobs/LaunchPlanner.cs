using System.Collections.Immutable;
using System.Globalization;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;

namespace Megatron.Grains.Jobs;

/// <summary>A device of the cluster: a node and the index of the device on it.</summary>
[GenerateSerializer, Immutable]
public readonly record struct DeviceId([property: Id(0)] string Node, [property: Id(1)] int LocalRank)
{
    /// <summary>Key of the device's rank grain, <c>node/localRank</c>.</summary>
    public string GrainKey => string.Create(CultureInfo.InvariantCulture, $"{Node}/{LocalRank}");
}

/// <summary>A rank and where it runs.</summary>
/// <param name="Silo">The silo that owned the device when the plan was made; another one in its place is a loss.</param>
[GenerateSerializer, Immutable]
public sealed record RankPlacement(
    [property: Id(0)] int Rank, [property: Id(1)] int Stage, [property: Id(2)] DeviceId Device, [property: Id(3)] string Silo)
{
    /// <summary>Threads for the rank's operations on a CPU; null leaves them to its worker.</summary>
    [Id(4)] public int? NumThreads { get; init; }
}

/// <summary>Where each rank of an attempt runs and how the ranks find one another.</summary>
/// <param name="Ranks">In rank order.</param>
/// <param name="RendezvousScheme">How <c>StartRank.RendezvousEndpoint</c> begins; the key of the attempt's rendezvous is added to it when the ranks start.</param>
[GenerateSerializer, Immutable]
public sealed record LaunchPlan(
    [property: Id(0)] ImmutableArray<RankPlacement> Ranks, [property: Id(1)] int NumStages, [property: Id(2)] string RendezvousScheme)
{
    public int WorldSize => Ranks.Length;

    public ImmutableArray<RankPlacement> StageRanks(int stage) => [.. Ranks.Where(rank => rank.Stage == stage)];
}

/// <summary>Decides which device runs which rank. Pure: devices in, placement out (DESIGN D9).</summary>
public static class LaunchPlanner
{
    /// <summary>Prefix of the rendezvous of ranks that are threads of one process.</summary>
    public const string OneProcess = "local:";

    /// <summary>Prefix of the rendezvous through the control plane.</summary>
    public const string ManyProcesses = RankMeeting.Scheme;

    /// <summary>
    /// Places <paramref name="numReplicas"/> copies of the model. The whole job goes to the smallest node that holds it; else each replica to the
    /// node with most free devices, so that a lost node costs few of them; else each block of tensor and context ranks; else wherever there is
    /// room. On a node, ranks and devices have the same order: the inner axes of the grid lie on neighbouring devices.
    /// </summary>
    /// <returns>A plan, or null when there are fewer devices than ranks.</returns>
    public static LaunchPlan? Place(JobLayout layout, int numReplicas, IReadOnlyCollection<ClusterDevice> devices)
    {
        int worldSize = layout.ReplicaSize * numReplicas;
        if (worldSize == 0 || devices.Count < worldSize)
            return null;
        var free = new FreeDevices(devices);
        var nodeOfRank = new string[worldSize];
        var whole = free.SmallestWith(worldSize);
        for (int replica = 0; replica < numReplicas; replica++)
        {
            var home = whole ?? free.LargestWith(layout.ReplicaSize);
            for (int stage = 0; stage < layout.PipelineSize; stage++)
            {
                var node = home ?? free.LargestWith(layout.BlockSize);
                int first = (stage * numReplicas + replica) * layout.BlockSize;
                for (int i = 0; i < layout.BlockSize; i++)
                    nodeOfRank[first + i] = free.Take(node ?? free.Largest());
            }
        }
        var ranks = nodeOfRank.Select((node, rank) => (Rank: rank, Device: free.NextOf(node)))
            .Select(pair => new RankPlacement(pair.Rank, pair.Rank / (layout.BlockSize * numReplicas), pair.Device.Id, pair.Device.Silo)).ToImmutableArray();
        bool isOneProcess = ranks.Select(rank => rank.Silo).Distinct(StringComparer.Ordinal).Count() == 1;
        return new LaunchPlan(ranks, layout.PipelineSize, isOneProcess ? OneProcess : ManyProcesses);
    }

    /// <summary>Devices by node: how many are left to promise, and which comes next.</summary>
    private sealed class FreeDevices
    {
        private readonly SortedDictionary<string, Queue<ClusterDevice>> byNode = new(StringComparer.Ordinal);
        private readonly SortedDictionary<string, int> left = new(StringComparer.Ordinal);

        public FreeDevices(IEnumerable<ClusterDevice> devices)
        {
            foreach (var node in devices.GroupBy(device => device.Id.Node, StringComparer.Ordinal))
            {
                byNode[node.Key] = new Queue<ClusterDevice>(node.OrderBy(device => device.Id.LocalRank));
                left[node.Key] = byNode[node.Key].Count;
            }
        }

        public string? SmallestWith(int count) => left.Where(node => node.Value >= count).OrderBy(node => node.Value).Select(node => node.Key).FirstOrDefault();

        public string? LargestWith(int count) => left.Where(node => node.Value >= count).OrderByDescending(node => node.Value).Select(node => node.Key).FirstOrDefault();

        public string Largest() => left.OrderByDescending(node => node.Value).First().Key;

        public string Take(string node)
        {
            left[node]--;
            return node;
        }

        public ClusterDevice NextOf(string node) => byNode[node].Dequeue();
    }
}
