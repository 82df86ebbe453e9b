using System.Globalization;
using Megatron.Compute.Training;
using Megatron.Grains.Cluster;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.Logging;

namespace Megatron.Silo;

/// <summary>
/// A silo's right to side effects. Membership alone cannot give it: a silo that is cut off from Redis and its peers never learns that it was declared
/// dead. Two loops ask Redis and the other silos; a thread of its own looks at the clock, whatever the thread pool does. When the lease is lost the ranks
/// are aborted and nothing is committed any more; when it stays lost the process ends.
/// </summary>
internal sealed class SiloLease : IDisposable
{
    private static readonly TimeSpan lookInterval = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan askInterval = TimeSpan.FromMilliseconds(500);

    private readonly SiloLeaseParts parts;
    private readonly LeaseClock lease;
    private readonly CancellationTokenSource ending = new();
    private readonly Thread thread;

    public SiloLease(SiloLeaseParts parts)
    {
        this.parts = parts;
        lease = new LeaseClock(parts.Time);
        thread = new Thread(Watch) { IsBackground = true, Name = "silo lease" };
    }

    /// <summary>Begins; called once, when the silo is active.</summary>
    public void Start()
    {
        thread.Start();
        // Both run until the lease is disposed; they catch all faults themselves.
        _ = AskAsync(AskRedisAsync);
        _ = AskAsync(AskPeersAsync);
    }

    public void Dispose()
    {
        ending.Cancel();
        thread.Join();
        ending.Dispose();
    }

    private void Watch()
    {
        while (!ending.Token.WaitHandle.WaitOne(lookInterval))
        {
            switch (lease.Look())
            {
                case LeaseState.Held when parts.Fence is { Reason: not null, IsFinal: false } && parts.Guard?.IsLost is not true:
                    SiloLog.LeaseRegained(parts.Logger);
                    parts.Fence.Open();
                    break;
                case LeaseState.Lost when parts.Fence.Reason is null:
                    Stop(string.Create(CultureInfo.InvariantCulture, $"the silo has reached neither Redis nor a majority of the silos for {LeaseClock.Length.TotalSeconds} s"));
                    break;
                case LeaseState.Expired:
                    parts.Process.RequestEnd("The silo has lost its way to the cluster and ends.");
                    break;
            }
        }
    }

    private void Stop(string reason)
    {
        parts.Fence.Close(reason);
        SiloLog.LeaseLost(parts.Logger, reason);
        parts.Workers.AbortAll(reason);
    }

    private async Task AskAsync(Func<CancellationToken, Task<bool>> ask)
    {
        try
        {
            while (true)
            {
                long askedAt = parts.Time.GetTimestamp();
                if (await ask(ending.Token))
                    lease.Renew(askedAt);
                await Task.Delay(askInterval, parts.Time, ending.Token);
            }
        }
        catch (OperationCanceledException)
        {
            // The silo ends.
        }
    }

    private async Task<bool> AskRedisAsync(CancellationToken cancellation)
    {
        if (parts.Guard is not { } guard)
            return false;
        var answer = await guard.CheckAsync();
        if (answer is GuardAnswer.Lost && parts.Fence.Reason is null)
            Stop(guard.LossMessage);
        if (answer is GuardAnswer.Lost)
            parts.Process.RequestEnd(guard.LossMessage);
        cancellation.ThrowIfCancellationRequested();
        return answer is GuardAnswer.Intact;
    }

    private async Task<bool> AskPeersAsync(CancellationToken cancellation)
    {
        var members = parts.Cluster.View().Active;
        var answers = await Task.WhenAll(members.Where(silo => silo != parts.Cluster.LocalSilo).Select(PingAsync));
        cancellation.ThrowIfCancellationRequested();
        return LeaseClock.IsMajority(1 + answers.Count(answer => answer), Math.Max(1, members.Count));
    }

    private async Task<bool> PingAsync(string silo)
    {
        var known = parts.Cluster.Silos().FirstOrDefault(member => member.Address == silo);
        if (known.Node?.DeviceIds.FirstOrDefault() is not { Node: not null } device)
            return false;
        try
        {
            await parts.Grains.GetGrain<INodeGrain>(device.GrainKey).Ping();
            return true;
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException)
        {
            return false;
        }
    }
}

/// <summary>What a lease works with.</summary>
internal sealed record SiloLeaseParts(
    IGrainFactory Grains, ClusterDevices Cluster, RankWorkerRegistry Workers, SideEffectFence Fence, ClusterGuard? Guard, ISiloProcess Process, TimeProvider Time,
    ILogger Logger);
