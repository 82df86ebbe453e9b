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
    /// <param name="silo">The silo that the plan counts on; on any other the start is refused.</param>
    [ResponseTimeout("00:00:05")]
    Task Start([Immutable] StartRank command, string silo, string stageGrainKey);

    /// <summary>
    /// Called by a stage grain that has moved: what the rank said of its life so far is said again, steps excepted. A device that knows nothing of
    /// the attempt says nothing: another silo has come in the place of the one that is lost, and the membership tells the job.
    /// </summary>
    [ResponseTimeout("00:00:05")]
    Task Repeat(AttemptId attempt);

    /// <summary>Called by the job grain when the rank did not end: the silo's process should be started again, if it is still the one named.</summary>
    [ResponseTimeout("00:00:05")]
    Task RestartSilo(string silo, string reason);

    /// <summary>
    /// Passes a command to the rank when it belongs to the attempt in hand, else ignores it and returns false; an abort is remembered, and a start of that
    /// attempt that is still on its way does nothing then.
    /// </summary>
    [ResponseTimeout("00:00:05")]
    Task<bool> Post([Immutable] RankCommand command);
}
