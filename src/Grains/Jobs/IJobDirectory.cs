namespace Megatron.Grains.Jobs;

/// <summary>
/// All jobs of the cluster, one grain with the key <see cref="Key"/>; durable. Clients list jobs here, the control plane finds the jobs that go on
/// after silos were lost.
/// </summary>
public interface IJobDirectory : IGrainWithStringKey
{
    /// <summary>The only key.</summary>
    const string Key = "all";

    /// <summary>Every job that was submitted and not forgotten, newest first.</summary>
    [ResponseTimeout("00:00:05")]
    Task<IReadOnlyList<JobSummary>> List();

    /// <summary>
    /// Called by a job grain when it is submitted, before it tells its client, and whenever its phase changes. An entry that is as new as the one
    /// known, or older, changes nothing.
    /// </summary>
    [ResponseTimeout("00:00:15")]
    Task Note([Immutable] JobSummary summary);
}

/// <summary>One line of the list of jobs.</summary>
/// <param name="Revision">Grows with each change of the job; orders entries that overtake one another.</param>
/// <param name="NumRanks">Ranks of the newest attempt, or those asked for.</param>
[GenerateSerializer, Immutable]
public sealed record JobSummary(
    [property: Id(0)] string JobId, [property: Id(1)] string Name, [property: Id(2)] JobPhase Phase, [property: Id(3)] int Attempt,
    [property: Id(4)] long LastIteration, [property: Id(5)] int NumRanks, [property: Id(6)] DateTimeOffset SubmittedAt,
    [property: Id(7)] DateTimeOffset? EndedAt, [property: Id(8)] string Reason, [property: Id(9)] long Revision)
{
    /// <summary>True when the job has ended, whichever way.</summary>
    public bool IsTerminal => Phase is JobPhase.Completed or JobPhase.Failed or JobPhase.Cancelled;
}
