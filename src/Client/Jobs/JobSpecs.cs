using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>From a prepared run to what is submitted.</summary>
public static class JobSpecs
{
    /// <summary>The job of a run.</summary>
    /// <param name="worldSize">Ranks.</param>
    public static JobSpec Of(PreparedRun run, int worldSize) => new()
    {
        JobId = run.Config.JobId ?? throw new InvalidOperationException("The prepared run has no job id."),
        Name = Path.GetFileName(run.Folder),
        ConfigJson = run.Config.ToJson(),
        WorldSize = worldSize,
        PipelineSize = run.Config.PipelineModelParallelSize,
        OutputFolder = run.Folder,
        MaxRestarts = run.Config.MaxRestarts,
        IsElastic = run.Config.Cluster is not null,
        Layout = JobLayout.Of(run.Config),
    };
}
