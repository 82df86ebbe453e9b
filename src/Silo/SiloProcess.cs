using Megatron.Compute.Training;
using Megatron.Grains.Cluster;

namespace Megatron.Silo;

/// <summary>The process around a silo: what it may still write, and whether it should end.</summary>
/// <param name="mayEnd">False for a silo inside a console, which lives as long as its job.</param>
internal sealed class SiloProcess(bool mayEnd) : ISiloProcess
{
    private readonly TaskCompletionSource<string> ended = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Closed while the silo has lost its way to the cluster.</summary>
    public SideEffectFence Fence { get; } = new();

    /// <summary>Completes with the reason when the process should end.</summary>
    public Task<string> Ended => ended.Task;

    public void RequestRestart(string reason)
    {
        if (mayEnd)
            ended.TrySetResult(reason);
    }
}
