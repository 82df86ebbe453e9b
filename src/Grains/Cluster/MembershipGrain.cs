using Megatron.Grains.Jobs;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Cluster;

/// <inheritdoc cref="IMembershipGrain"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class MembershipGrain : Grain, IMembershipGrain
{
    /// <summary>
    /// A call that was on its way to a silo when that was killed may never be answered; whoever calls this grain has given up by then, and calls again.
    /// </summary>
    private static readonly TimeSpan callerWaits = TimeSpan.FromSeconds(1);

    private readonly ClusterDevices devices;
    private readonly ControlClock clock;
    private readonly ILogger<MembershipGrain> logger;
    private long version = -1;

    public MembershipGrain(ClusterDevices devices, ControlClock clock, ILogger<MembershipGrain> logger)
    {
        this.devices = devices;
        this.clock = clock;
        this.logger = logger;
    }

    public async Task<ClusterStatus> GetStatus()
    {
        var pool = await GrainFactory.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key).GetState();
        var owners = pool.Reservations.SelectMany(reservation => reservation.Devices.Select(device => (device, reservation.JobId)))
            .ToDictionary(pair => pair.device, pair => pair.JobId);
        return new ClusterStatus(devices.View().Version, [.. devices.Silos().Select(silo => new SiloSummary(silo.Address, silo.Status, silo.Node?.Name ?? "",
            [.. (silo.Node?.DeviceIds ?? []).Select(device => new DeviceSummary(device.LocalRank, owners.GetValueOrDefault(device)))]))]);
    }

    public async Task OnView(MembershipView view)
    {
        if (view.Version <= version)
            return;
        // Awaited: a job whose grain was on the lost silo may not be reachable for a moment, and nobody else would wake it. The caller tells the view again.
        await TellJobs(view).WaitAsync(callerWaits, clock.Time);
        GrainCalls.Send(GrainFactory.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key).OnMembership(), logger, "the membership changed");
        version = view.Version;
    }

    public async Task OnSiloLeaving(string silo)
    {
        await GrainFactory.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key).OnSiloLeaving(silo);
        await Task.WhenAll((await LivingJobs()).Select(jobId => GrainFactory.GetGrain<IJobControl>(jobId).OnSiloLeaving(silo)));
    }

    private async Task TellJobs(MembershipView view) =>
        await Task.WhenAll((await LivingJobs()).Select(jobId => GrainFactory.GetGrain<IJobControl>(jobId).OnMembership(view)));

    private async Task<IEnumerable<string>> LivingJobs() =>
        (await GrainFactory.GetGrain<IJobDirectory>(IJobDirectory.Key).List()).Where(job => !job.IsTerminal).Select(job => job.JobId);
}
