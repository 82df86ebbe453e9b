using Orleans.Concurrency;

namespace Megatron.Grains.Experts;

/// <summary>The experts of a job, key = job id: which ranks hold which, and how many tokens each got in the newest step that was counted.</summary>
public interface IExpertShardGrain : IGrainWithStringKey
{
    /// <summary>
    /// Called by the job grain, once for each stage and log interval. Not answered: the next one makes up for one that is lost. Counts of an older
    /// attempt are ignored.
    /// </summary>
    [OneWay]
    Task Record([Immutable] ExpertCounts counts);

    /// <summary>For clients; null when nothing was counted, as for a model without experts.</summary>
    [ResponseTimeout("00:00:05")]
    Task<ExpertLoad?> GetLoad();
}
