using Megatron.Grains.Jobs;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Cluster;

/// <inheritdoc cref="IDevicePoolGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class DevicePoolGrain : Grain, IDevicePoolGrain
{
    private readonly IPersistentState<DevicePoolState> storage;
    private readonly ClusterDevices devices;
    private readonly ILogger<DevicePoolGrain> logger;
    private readonly HashSet<string> leaving = new(StringComparer.Ordinal);
    private DevicePoolState state = DevicePoolState.Empty;

    public DevicePoolGrain(
        [PersistentState("pool", GrainServices.JobStorage)] IPersistentState<DevicePoolState> storage, ClusterDevices devices, ILogger<DevicePoolGrain> logger)
    {
        this.storage = storage;
        this.devices = devices;
        this.logger = logger;
    }

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        if (storage.RecordExists)
            state = storage.State;
        return Task.CompletedTask;
    }

    public async Task<DeviceAnswer> Reserve(DeviceRequest request)
    {
        var (next, answer) = DevicePool.Reserve(state, request, [.. devices.All().Where(device => !leaving.Contains(device.Silo))], devices.Machines());
        await Store(next);
        return answer;
    }

    public async Task Release(string jobId)
    {
        await Store(DevicePool.Release(state, jobId));
        TellJobs();
    }

    public Task OnMembership()
    {
        leaving.IntersectWith(devices.View().Active);
        TellJobs();
        return Task.CompletedTask;
    }

    public Task OnSiloLeaving(string silo)
    {
        leaving.Add(silo);
        return Task.CompletedTask;
    }

    public Task<DevicePoolState> GetState() => Task.FromResult(state);

    private async Task Store(DevicePoolState next)
    {
        if (next == state)
            return;
        storage.State = next;
        await storage.WriteStateAsync();
        state = next;
    }

    // Not awaited: a job may be asking this grain at the same moment. One that is not reached asks again by itself.
    private void TellJobs()
    {
        foreach (string jobId in state.Queue.Concat(state.Reservations.Select(reservation => reservation.JobId)))
            GrainCalls.Send(GrainFactory.GetGrain<IJobControl>(jobId).OnDevicesFree(), logger, "devices are free");
    }
}
