using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Cluster;

/// <summary>
/// Tells the membership grain of every change that this silo sees, from its start to its end. Every silo does so: whichever survives, the jobs hear
/// of what was lost, and a cluster that starts anew takes its jobs up again.
/// </summary>
internal sealed class ClusterWatch : ILifecycleParticipant<ISiloLifecycle>
{
    private static readonly TimeSpan retryDelay = TimeSpan.FromMilliseconds(200);

    private readonly IClusterMembershipService membership;
    private readonly IGrainFactory grains;
    private readonly ControlClock clock;
    private readonly ILogger<ClusterWatch> logger;
    private readonly CancellationTokenSource ending = new();

    public ClusterWatch(IClusterMembershipService membership, IGrainFactory grains, ControlClock clock, ILogger<ClusterWatch> logger)
    {
        this.membership = membership;
        this.grains = grains;
        this.clock = clock;
        this.logger = logger;
    }

    public void Participate(ISiloLifecycle lifecycle) => lifecycle.Subscribe(nameof(ClusterWatch), ServiceLifecycleStage.Active, Start, Stop);

    private Task Start(CancellationToken cancellation)
    {
        // Runs beside the silo's life until its end; it catches all faults itself.
        _ = FollowAsync(ending.Token);
        return Task.CompletedTask;
    }

    private Task Stop(CancellationToken cancellation) => ending.CancelAsync();

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
            catch (Exception fault) when (!cancellation.IsCancellationRequested)
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
