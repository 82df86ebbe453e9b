using Megatron.Grains.Cluster;

namespace Megatron.Silo;

/// <summary>
/// How a silo leaves when it is asked to: no rank is placed on it any more, the ranks on it save and end, their jobs go on elsewhere or wait, then it
/// goes. What does not happen in time is left to the recovery of the jobs.
/// </summary>
internal static class SiloDrain
{
    /// <summary>A silo must be gone eight seconds after SIGTERM; leaving the cluster takes the rest.</summary>
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(6);

    private static readonly TimeSpan askInterval = TimeSpan.FromMilliseconds(100);

    /// <summary>Returns when no job has a device of this silo reserved any more, or when the time is over.</summary>
    public static async Task RunAsync(IGrainFactory grains, ClusterDevices cluster, NodeIdentity node, TimeProvider time)
    {
        using var ending = new CancellationTokenSource(patience, time);
        try
        {
            await grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).OnSiloLeaving(cluster.LocalSilo).WaitAsync(ending.Token);
            var pool = grains.GetGrain<IDevicePoolGrain>(IDevicePoolGrain.Key);
            var own = node.DeviceIds.ToHashSet();
            while ((await pool.GetState().WaitAsync(ending.Token)).Reservations.Any(reservation => reservation.Devices.Any(own.Contains)))
                await Task.Delay(askInterval, time, ending.Token);
        }
        catch (Exception fault) when (fault is OperationCanceledException or OrleansException or TimeoutException)
        {
            // It leaves all the same.
        }
    }
}
