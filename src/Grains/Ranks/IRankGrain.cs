using Megatron.Compute.Training;

namespace Megatron.Grains.Ranks;

/// <summary>
/// A device of the cluster, key <c>node/localRank</c>; lives on the silo that owns the device and stands between the control plane and its
/// rank worker. Called by the stage grain, and by the checkpoint grain for rank 0.
/// </summary>
public interface IRankGrain : IGrainWithStringKey
{
    /// <summary>
    /// Starts a rank under an attempt; its reports go to the stage grain named. Repeating the same start does nothing, a start of an older
    /// attempt is ignored. Returns when the command is queued, not when the rank runs.
    /// </summary>
    [ResponseTimeout("00:00:05")]
    Task Start([Immutable] StartRank command, string stageGrainKey);

    /// <summary>Passes a command to the rank when it belongs to the attempt in hand, else ignores it.</summary>
    [ResponseTimeout("00:00:05")]
    Task Post([Immutable] RankCommand command);
}
