using Megatron.Compute.Native;
using Megatron.Compute.Training;
using Megatron.Grains;
using Megatron.Silo;

namespace Megatron.Client.Cluster;

/// <summary>The rank workers of a silo that belongs to a cluster: its ranks meet those of other silos through the control plane.</summary>
public static class SiloWorkers
{
    /// <summary>What makes the worker of a device. All devices share an environment: ranks of one process meet in its memory.</summary>
    /// <param name="libTorch">Folder of libtorch; null for the default.</param>
    public static Func<int, IRankWorker> Of(SiloOptions options, string? libTorch, RankServices services, TimeProvider time)
    {
        var address = options.Cluster?.Address ?? throw new ArgumentException("The silo belongs to no cluster.", nameof(options));
        var environment = RankEnvironment.OfSilo(
            new LibTorchOptions { Folder = libTorch }, time, options.Devices.Count, new RankMeeting(services.Rendezvous, address)) with { Fence = services.Fence, Snapshots = services.Snapshots };
        return localRank => new RankWorker(localRank, start => new TrainingRun(start, environment));
    }
}
