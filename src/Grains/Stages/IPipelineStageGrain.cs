using System.Globalization;
using Megatron.Compute.Training;

namespace Megatron.Grains.Stages;

/// <summary>
/// One pipeline stage of a job, key <c>jobId/stage</c>: hands its layers and its schedule to its ranks, fans commands out to them and joins their
/// reports, so that the job grain hears one message per stage and step whatever the number of data-parallel ranks.
/// </summary>
public interface IPipelineStageGrain : IGrainWithStringKey
{
    /// <summary>Key of a stage's grain.</summary>
    static string KeyOf(string jobId, int stage) => string.Create(CultureInfo.InvariantCulture, $"{jobId}/{stage}");

    /// <summary>Called by the job grain once per attempt. Returns when every rank grain has queued its start.</summary>
    [ResponseTimeout("00:00:10")]
    Task Start([Immutable] StageLaunch launch);

    /// <summary>
    /// Called by the job grain when grains may have moved: takes the launch up if it is not known here, and lets the ranks repeat what they said.
    /// A rank that does not answer is no fault here; its silo is lost and the membership says so.
    /// </summary>
    [ResponseTimeout("00:00:05")]
    Task Attach([Immutable] StageLaunch launch);

    /// <summary>Called by the job grain: passes a command of the current attempt to every rank of the stage.</summary>
    [ResponseTimeout("00:00:10")]
    Task Broadcast([Immutable] RankCommand command);

    /// <summary>Called by the rank grains, in order per rank; a repeated delivery is recognised by its sequence numbers.</summary>
    [ResponseTimeout("00:00:02")]
    Task OnReports(AttemptId attempt, int rank, [Immutable] List<SequencedReport> reports);
}
