using Megatron.Compute.Training;
using Megatron.Grains.Cluster;

namespace Megatron.Silo;

/// <summary>Why a process should end.</summary>
/// <param name="Reason">For the user.</param>
/// <param name="CanLeave">True when the silo can still tell its cluster that it goes.</param>
public sealed record SiloEnd(string Reason, bool CanLeave);

/// <summary>The process around a silo: what it may still write, and whether it should end.</summary>
/// <param name="mayEnd">False for a silo inside a console, which lives as long as its job.</param>
internal sealed class SiloProcess(bool mayEnd) : ISiloProcess
{
    private readonly TaskCompletionSource<SiloEnd> ended = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Closed while the silo has lost its way to the cluster, and when it is to end.</summary>
    public SideEffectFence Fence { get; } = new();

    /// <summary>Completes when the process should end.</summary>
    public Task<SiloEnd> Ended => ended.Task;

    public void RequestRestart(string reason)
    {
        if (!mayEnd)
            return;
        // The rank that hangs may wake up.
        Fence.CloseForGood(reason);
        ended.TrySetResult(new SiloEnd(reason, CanLeave: true));
    }

    public void RequestEnd(string reason)
    {
        if (mayEnd)
            ended.TrySetResult(new SiloEnd(reason, CanLeave: false));
    }
}
