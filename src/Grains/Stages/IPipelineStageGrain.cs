using System.Globalization;
using Megatron.Compute.Training;

namespace Megatron.Grains.Stages;

/// <summary>
/// One pipeline stage of a job, key <c>jobId/stage</c>: fans commands out to its ranks and joins their reports, so that the job grain hears one
/// message per stage and step whatever the number of data-parallel ranks.
/// </summary>
public interface IPipelineStageGrain : IGrainWithStringKey
{
    /// <summary>Key of a stage's grain.</summary>
    static string KeyOf(string jobId, int stage) => string.Create(CultureInfo.InvariantCulture, $"{jobId}/{stage}");

    /// <summary>Called by the job grain once per attempt. Returns when every rank grain has queued its start.</summary>
    [ResponseTimeout("00:00:10")]
    Task Start([Immutable] StageLaunch launch);

    /// <summary>Called by the job grain: passes a command of the current attempt to every rank of the stage.</summary>
    [ResponseTimeout("00:00:10")]
    Task Broadcast([Immutable] RankCommand command);

    /// <summary>Called by the rank grains, in order per rank; a repeated delivery is recognised by its sequence numbers.</summary>
    [ResponseTimeout("00:00:05")]
    Task OnReports(AttemptId attempt, int rank, [Immutable] List<SequencedReport> reports);
}
