namespace Megatron.Compute.Training;

/// <summary>
/// Whether this process may still do what others see: commit a checkpoint above all. A silo that has lost its way to the cluster closes it, for the
/// cluster may have started the job elsewhere. Any thread may use it.
/// </summary>
public sealed class SideEffectFence
{
    private readonly Lock gate = new();
    private volatile string? reason;
    private volatile bool isFinal;

    /// <summary>Why it is closed; null while it is open.</summary>
    public string? Reason => reason;

    /// <summary>True when it is closed for good.</summary>
    public bool IsFinal => isFinal;

    /// <summary>Nothing may be done any more.</summary>
    public void Close(string why)
    {
        lock (gate) reason ??= why;
    }

    /// <summary>As <see cref="Close"/>, and it is never opened again: the process is about to end.</summary>
    public void CloseForGood(string why)
    {
        lock (gate) (isFinal, reason) = (true, reason ?? why);
    }

    /// <summary>The cluster is in reach again; what was aborted meanwhile stays aborted.</summary>
    public void Open()
    {
        lock (gate)
            if (!isFinal) reason = null;
    }

    /// <summary>Called right before each file operation of a save.</summary>
    /// <exception cref="IOException">It is closed: the save is given up.</exception>
    public void Check()
    {
        if (reason is { } why) throw new IOException($"This silo may not write: {why}.");
    }
}
