using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>What is submitted.</summary>
public static class JobSpecs
{
    /// <summary>The job of a prepared run.</summary>
    /// <param name="worldSize">Ranks.</param>
    /// <param name="isElastic">As <see cref="JobSpec.IsElastic"/>.</param>
    public static JobSpec Of(PreparedRun run, int worldSize, bool isElastic) => new()
    {
        JobId = run.Config.JobId ?? throw new InvalidOperationException("The prepared run has no job id."),
        Name = Path.GetFileName(run.Folder),
        ConfigJson = run.Config.ToJson(),
        WorldSize = worldSize,
        PipelineSize = run.Config.PipelineModelParallelSize,
        OutputFolder = run.Folder,
        MaxRestarts = run.Config.MaxRestarts,
        IsElastic = isElastic,
        Layout = JobLayout.Of(run.Config, run.Model),
        TakesSnapshots = run.Config.PeerSnapshotInterval > 0,
    };

    /// <summary>A job that goes on where another one ended: the same run folder, its newest checkpoint if there is one.</summary>
    public static JobSpec Resumed(JobSpec old, string jobId, TimeProvider time)
    {
        var config = TrainingConfig.FromJson(old.ConfigJson);
        bool hasCheckpoint = new CheckpointStore(old.OutputFolder, time).FindNewestVerified(CheckpointVerification.Sizes).Found is not null;
        config = hasCheckpoint ? config with { JobId = jobId, Load = old.OutputFolder, Finetune = false } : config with { JobId = jobId };
        return old with { JobId = jobId, ConfigJson = config.ToJson() };
    }

    /// <summary>Whether a job has ended, whichever way.</summary>
    public static bool IsTerminal(this JobStatus status) => status.Phase is JobPhase.Completed or JobPhase.Failed or JobPhase.Cancelled;
}
