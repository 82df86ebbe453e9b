namespace Megatron.Grains.Cluster;

/// <summary>The process around a silo, as far as the control plane may end it.</summary>
public interface ISiloProcess
{
    /// <summary>
    /// A rank of this silo hangs where nothing can reach it: the silo, which is well otherwise, should leave its cluster, and the process end and be started
    /// again by whoever watches over it. Returns at once.
    /// </summary>
    void RequestRestart(string reason);

    /// <summary>The silo is out of reach of its cluster: the process should end as it is and be started again. Returns at once.</summary>
    void RequestEnd(string reason);
}

/// <summary>A process that has other things to do than to host a silo, as a console or a test, and is not ended.</summary>
internal sealed class LastingSiloProcess : ISiloProcess
{
    public void RequestRestart(string reason)
    {
        // Its devices stay out of use until somebody restarts it.
    }

    public void RequestEnd(string reason)
    {
    }
}
