namespace Megatron.Compute.Training;

/// <summary>
/// Whether this process may still do what others see: commit a checkpoint above all. A silo that has lost its way to the cluster closes it, for the
/// cluster may have started the job elsewhere. Any thread may use it.
/// </summary>
public sealed class SideEffectFence
{
    private volatile string? reason;

    /// <summary>Why it is closed; null while it is open.</summary>
    public string? Reason => reason;

    /// <summary>Nothing may be done any more.</summary>
    public void Close(string why) => reason ??= why;

    /// <summary>The cluster is in reach again; what was aborted meanwhile stays aborted.</summary>
    public void Open() => reason = null;

    /// <summary>Called right before each file operation of a save.</summary>
    /// <exception cref="IOException">It is closed: the save is given up.</exception>
    public void Check()
    {
        if (reason is { } why) throw new IOException($"This silo may not write: {why}.");
    }
}
