using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Cluster;

/// <summary>
/// Tells the membership grain of every change that this silo sees, from its start to its end. Every silo does so: whichever survives, the jobs hear
/// of what was lost, and a cluster that starts anew takes its jobs up again. A silo counts as started when grains can be placed on it, and as stopping
/// when nothing of this is under way any more: a call before or after would only fail.
/// </summary>
internal sealed class ClusterWatch : ILifecycleParticipant<ISiloLifecycle>
{
    private static readonly TimeSpan retryDelay = TimeSpan.FromMilliseconds(200);

    private readonly IClusterMembershipService membership;
    private readonly IClusterManifestProvider manifest;
    private readonly ILocalSiloDetails localSilo;
    private readonly IGrainFactory grains;
    private readonly ControlClock clock;
    private readonly ILogger<ClusterWatch> logger;
    private readonly CancellationTokenSource ending = new();
    private Task following = Task.CompletedTask;

    public ClusterWatch(
        IClusterMembershipService membership, IClusterManifestProvider manifest, ILocalSiloDetails localSilo, IGrainFactory grains, ControlClock clock, ILogger<ClusterWatch> logger)
    {
        this.membership = membership;
        this.manifest = manifest;
        this.localSilo = localSilo;
        this.grains = grains;
        this.clock = clock;
        this.logger = logger;
    }

    public void Participate(ISiloLifecycle lifecycle) => lifecycle.Subscribe(nameof(ClusterWatch), ServiceLifecycleStage.Active, Start, Stop);

    private async Task Start(CancellationToken cancellation)
    {
        await foreach (var known in manifest.Updates.WithCancellation(cancellation))
        {
            if (known.Silos.ContainsKey(localSilo.SiloAddress))
                break;
        }
        // Runs beside the silo's life until its end; it catches all faults itself.
        following = FollowAsync(ending.Token);
    }

    private async Task Stop(CancellationToken cancellation)
    {
        await ending.CancelAsync();
        await following;
    }

    private async Task FollowAsync(CancellationToken cancellation)
    {
        try
        {
            await foreach (var snapshot in membership.MembershipUpdates.WithCancellation(cancellation))
                await TellAsync(ClusterDevices.ViewOf(snapshot), cancellation);
        }
        catch (OperationCanceledException)
        {
            // The silo ends.
        }
    }

    private async Task TellAsync(MembershipView view, CancellationToken cancellation)
    {
        while (!cancellation.IsCancellationRequested)
        {
            try
            {
                await grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).OnView(view);
                return;
            }
            catch (Exception fault)
            {
                // The silo of the grain may be the one that is gone; a newer view is told as well, after this one.
                GrainLog.CallFailed(logger, "the membership changed", fault.Message);
                if (membership.CurrentSnapshot.Version.Value > view.Version)
                    view = ClusterDevices.ViewOf(membership.CurrentSnapshot);
            }
            await Task.Delay(retryDelay, clock.Time, cancellation);
        }
    }
}
