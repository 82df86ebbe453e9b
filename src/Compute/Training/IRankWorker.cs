namespace Megatron.Compute.Training;

/// <summary>
/// The narrow waist between the control plane and the compute plane (DESIGN D1): one object per device of a silo. Grains send commands,
/// the worker answers with reports; nothing else crosses. Implemented by <c>RankWorker</c> (a thread that owns the rank's tensors) and by
/// a fake in the tests.
/// </summary>
public interface IRankWorker : IAsyncDisposable
{
    /// <summary>Index of the device on this node.</summary>
    int LocalRank { get; }

    /// <summary>
    /// Queues a command and returns at once; any thread may call it. A command of an attempt older than the one in hand is ignored.
    /// <see cref="AbortRank"/> takes effect at once from the calling thread (collectives are aborted), all others between two steps.
    /// </summary>
    void Post(RankCommand command);

    /// <summary>
    /// Where reports go. Called on the worker's thread and must not block; the rank grain sets it before the first <see cref="StartRank"/>.
    /// </summary>
    void Subscribe(Action<RankReport> sink);
}
