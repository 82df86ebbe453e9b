using Megatron.Compute.Training;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.DependencyInjection.Extensions;
using Orleans.Runtime.MembershipService.SiloMetadata;

namespace Megatron.Grains;

/// <summary>What the grains need of a silo; the silo and the tests compose it the same way.</summary>
public static class GrainServices
{
    /// <summary>Name of the grain storage that keeps job states.</summary>
    public const string JobStorage = "jobs";

    /// <summary>Registers the node, its workers and the placement of rank grains.</summary>
    /// <param name="createWorker">Makes the worker of a device (its index on the node) when the first rank is started there.</param>
    public static ISiloBuilder AddTrainingGrains(this ISiloBuilder silo, NodeIdentity node, Func<int, IRankWorker> createWorker)
    {
        silo.UseSiloMetadata(node.ToMetadata());
        silo.Services.TryAddSingleton(TimeProvider.System);
        silo.Services.AddSingleton(node);
        silo.Services.AddSingleton(_ => new RankWorkerRegistry(node, createWorker));
        silo.Services.AddSingleton<ClusterDevices>();
        silo.Services.AddPlacementDirector<DeviceOwnerPlacement, DeviceOwnerPlacementDirector>();
        return silo;
    }
}
