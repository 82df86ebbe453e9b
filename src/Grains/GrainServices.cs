using Megatron.Compute.Distributed;
using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Grains.Ranks;
using Megatron.Grains.Rendezvous;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.DependencyInjection.Extensions;
using Orleans.Runtime.MembershipService.SiloMetadata;

namespace Megatron.Grains;

/// <summary>What the control plane lends to a rank worker.</summary>
/// <param name="Rendezvous">Where the ranks of an attempt find one another, by <see cref="IRendezvousGrain.KeyOf"/>; blocking, for the rank's thread only.</param>
/// <param name="Fence">Closed while this silo may not write what others see.</param>
/// <param name="Snapshots">Keeps the snapshots of the ranks of this silo when they end.</param>
public sealed record RankServices(Func<string, IRendezvousStore> Rendezvous, SideEffectFence Fence, PeerSnapshotStore Snapshots);

/// <summary>What the grains need of a silo; the silo and the tests compose it the same way.</summary>
public static class GrainServices
{
    /// <summary>Name of the grain storage that keeps job states, the job directory and the device pool.</summary>
    public const string JobStorage = "jobs";

    /// <summary>Registers the node, its workers and the placement of rank grains.</summary>
    /// <param name="workers">Called once; what it returns makes the worker of a device (its index on the node) when the first rank is started there.</param>
    public static ISiloBuilder AddTrainingGrains(this ISiloBuilder silo, NodeIdentity node, Func<RankServices, Func<int, IRankWorker>> workers)
    {
        silo.UseSiloMetadata(node.ToMetadata());
        silo.Services.TryAddSingleton(new ControlClock(TimeProvider.System));
        silo.Services.TryAddSingleton(new JobTimings());
        silo.Services.TryAddSingleton<ISiloProcess, LastingSiloProcess>();
        silo.Services.TryAddSingleton<ISiloProbe, NoSiloProbe>();
        silo.Services.AddSingleton<LostSilos>();
        silo.Services.TryAddSingleton(new SideEffectFence());
        silo.Services.AddSingleton(node);
        silo.Services.AddSingleton(services => new RankServices(key => new GrainRendezvousStore(services.GetRequiredService<IGrainFactory>(), key), services.GetRequiredService<SideEffectFence>(), services.GetRequiredService<PeerSnapshotStore>()));
        silo.Services.AddSingleton(services => new PeerSnapshotStore(TimeProvider.System, services.GetRequiredService<SideEffectFence>()));
        silo.Services.TryAddSingleton<ISnapshotHolder>(services => services.GetRequiredService<PeerSnapshotStore>());
        silo.Services.AddSingleton(services => new RankWorkerRegistry(node, workers(services.GetRequiredService<RankServices>())));
        silo.Services.AddSingleton<RendezvousRooms>();
        silo.Services.AddSingleton<ClusterDevices>();
        silo.Services.AddSingleton<ILifecycleParticipant<ISiloLifecycle>, ClusterWatch>();
        silo.Services.AddPlacementDirector<DeviceOwnerPlacement, DeviceOwnerPlacementDirector>();
        return silo;
    }
}
