using System.Collections.Immutable;

namespace Megatron.Grains.Jobs;

/// <summary>What the directory keeps; jobs that ended longest ago are forgotten first.</summary>
[GenerateSerializer, Immutable]
public sealed record JobDirectoryState
{
    /// <summary>Entries that are kept.</summary>
    public const int MaxEntries = 1000;

    [Id(0)] public ImmutableDictionary<string, JobSummary> Jobs { get; init; } = ImmutableDictionary<string, JobSummary>.Empty;

    /// <summary>The state with an entry added or renewed; the same object when it is known already.</summary>
    public JobDirectoryState With(JobSummary summary)
    {
        if (Jobs.TryGetValue(summary.JobId, out var known) && known.Revision >= summary.Revision)
            return this;
        var jobs = Jobs.SetItem(summary.JobId, summary);
        if (jobs.Count > MaxEntries && jobs.Values.Where(job => job.IsTerminal).MinBy(job => job.EndedAt) is { } oldest)
            jobs = jobs.Remove(oldest.JobId);
        return new JobDirectoryState { Jobs = jobs };
    }
}

/// <inheritdoc cref="IJobDirectory"/>
[CollectionAgeLimit(Days = 1)]
internal sealed class JobDirectoryGrain : Grain, IJobDirectory
{
    private readonly IPersistentState<JobDirectoryState> storage;
    private JobDirectoryState state = new();

    public JobDirectoryGrain([PersistentState("directory", GrainServices.JobStorage)] IPersistentState<JobDirectoryState> storage) => this.storage = storage;

    public override Task OnActivateAsync(CancellationToken cancellationToken)
    {
        if (storage.RecordExists)
            state = storage.State;
        return Task.CompletedTask;
    }

    public Task<IReadOnlyList<JobSummary>> List() =>
        Task.FromResult<IReadOnlyList<JobSummary>>([.. state.Jobs.Values.OrderByDescending(job => job.SubmittedAt).ThenBy(job => job.JobId, StringComparer.Ordinal)]);

    public async Task Note(JobSummary summary)
    {
        var next = state.With(summary);
        if (ReferenceEquals(next, state))
            return;
        storage.State = next;
        await storage.WriteStateAsync();
        state = next;
    }
}
