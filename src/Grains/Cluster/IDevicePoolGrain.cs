using Megatron.Grains.Jobs;

namespace Megatron.Grains.Cluster;

/// <summary>Reserves devices for jobs, all that a plan needs or none; one grain with the key <see cref="Key"/>, durable.</summary>
public interface IDevicePoolGrain : IGrainWithStringKey
{
    /// <summary>The only key.</summary>
    const string Key = "devices";

    /// <summary>Called by a job grain before it starts an attempt. A job that must wait is told by <see cref="IJobControl.OnDevicesFree"/>; asking again
    /// changes nothing.</summary>
    [ResponseTimeout("00:00:03")]
    Task<DeviceAnswer> Reserve([Immutable] DeviceRequest request);

    /// <summary>Called by a job grain that has ended; may be repeated.</summary>
    [ResponseTimeout("00:00:15")]
    Task Release(string jobId);

    /// <summary>Called by the membership grain: silos came or went.</summary>
    [ResponseTimeout("00:00:15")]
    Task OnMembership();

    /// <summary>Called by the membership grain: no more ranks are placed on this silo.</summary>
    [ResponseTimeout("00:00:15")]
    Task OnSiloLeaving(string silo);

    /// <summary>Who has which devices.</summary>
    [ResponseTimeout("00:00:05")]
    Task<DevicePoolState> GetState();
}
