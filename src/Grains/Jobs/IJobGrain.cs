using Megatron.Grains.Stages;

namespace Megatron.Grains.Jobs;

/// <summary>A training job, key = job id: what clients talk to.</summary>
public interface IJobGrain : IGrainWithStringKey
{
    /// <summary>
    /// Accepts the job and starts it. The same spec under the same id again is the same job and changes nothing; another spec under a known id
    /// is refused. Returns when the start commands are out, not when the job runs.
    /// </summary>
    [ResponseTimeout("00:00:30")]
    Task<SubmitResult> Submit(JobSpec spec);

    /// <summary>Where the job is.</summary>
    [ResponseTimeout("00:00:05")]
    Task<JobStatus> GetStatus();

    /// <summary>
    /// Asks the job to end after the step in hand, with a checkpoint when <paramref name="save"/> is set. Asking a second time
    /// with <paramref name="save"/> false ends it at once. Returns when the ranks have the command; watch the job to see it end.
    /// </summary>
    [ResponseTimeout("00:00:15")]
    Task<JobStatus> Cancel(bool save);

    /// <summary>
    /// The job's events from <paramref name="fromSequence"/> on: first what the ring still holds, then what happens; ends after the last event of
    /// a job that has ended and given its devices back, at once for an id that nobody submitted. After a lost connection ask again from the last sequence seen plus one.
    /// </summary>
    IAsyncEnumerable<JobEvent> Watch(long fromSequence, CancellationToken cancellation = default);
}

/// <summary>The job grain as its stages see it.</summary>
public interface IJobReports : IGrainWithStringKey
{
    /// <summary>Called by the stage grains, in order per stage; a repeated delivery is recognised by its sequence numbers.</summary>
    [ResponseTimeout("00:00:03")]
    Task OnStage([Immutable] List<StageMessage> messages);
}
