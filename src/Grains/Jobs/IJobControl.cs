using Orleans.Concurrency;
using Megatron.Grains.Cluster;

namespace Megatron.Grains.Jobs;

/// <summary>The job grain as the rest of the control plane sees it.</summary>
public interface IJobControl : IGrainWithStringKey
{
    /// <summary>
    /// Called by the membership grain after each change, also to wake a job whose silo is gone: ranks on silos that have left are lost.
    /// </summary>
    [ResponseTimeout("00:00:30")]
    Task OnMembership([Immutable] MembershipView view);

    /// <summary>Called by the device pool when a waiting job should ask again, or one with fewer replicas than asked for could have more.</summary>
    [ResponseTimeout("00:00:30")]
    Task OnDevicesFree();

    /// <summary>Called by the membership grain when a silo wants to leave: ranks on it save and move.</summary>
    [ResponseTimeout("00:00:30")]
    Task OnSiloLeaving(string silo);

    /// <summary>Called by the grain itself when the snapshots of an attempt that has ended are looked for and written.</summary>
    [ResponseTimeout("00:00:30")]
    Task OnSnapshotSettled(int attempt, CommittedCheckpoint? checkpoint, string? problem);

    /// <summary>Called by the grain itself at intervals, as a turn of its own.</summary>
    [ResponseTimeout("00:00:30")]
    Task Tick();

    /// <summary>
    /// Called by a grain between the job and its ranks that was activated anew and knows no attempt: as after a silo's leaving, which takes grains away later
    /// than devices. The job tells it what it must know.
    /// </summary>
    [OneWay]
    Task OnGrainMoved(int attempt);
}
