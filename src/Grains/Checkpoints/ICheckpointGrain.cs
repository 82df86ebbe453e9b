using Megatron.Compute.Training;

namespace Megatron.Grains.Checkpoints;

/// <summary>
/// The checkpoints of a job, key = job id: a checkpoint counts only after every rank of the current attempt said that its part is on disk, and
/// only this grain lets rank 0 commit (DESIGN D11).
/// </summary>
public interface ICheckpointGrain : IGrainWithStringKey
{
    /// <summary>Called by the job grain before the ranks of an attempt start: from now on only this attempt may save.</summary>
    [ResponseTimeout("00:00:05")]
    Task Begin(AttemptId attempt, int worldSize, string rank0GrainKey);

    /// <summary>Called by the job grain when the attempt is over: nothing of it is committed any more.</summary>
    [ResponseTimeout("00:00:05")]
    Task End(AttemptId attempt);

    /// <summary>Called by the rank grains, once per rank and save; repeated receipts change nothing. What a rank says after it waits behind it.</summary>
    [ResponseTimeout("00:00:03")]
    Task AddReceipt([Immutable] CheckpointReceipt receipt);

    /// <summary>Called by the rank grain of rank 0 after the folder was renamed.</summary>
    [ResponseTimeout("00:00:05")]
    Task MarkCommitted([Immutable] CheckpointCommitted report);
}
