using System.Runtime.CompilerServices;
using Megatron.Grains.Jobs;

namespace Megatron.Testing;

/// <summary>A job as a console meets it: its answers are given in the order in which they were written down.</summary>
public sealed class FakeJob : IJobGrain
{
    private readonly Queue<Task<JobStatus>> answers = [];
    private readonly Queue<(JobEvent[] Events, bool Ends)> watches = [];

    /// <summary>Sequence numbers from which the job was watched.</summary>
    public List<long> WatchedFrom { get; } = [];

    /// <summary>The status of a running job whose grain has not moved.</summary>
    public static JobStatus Running { get; } = new() { JobId = "a", Name = "a", Phase = JobPhase.Running, Attempt = 1, LastIteration = 1 };

    /// <summary>The next question after the status is answered, or waits for the time-out of whoever asks.</summary>
    public FakeJob Answers(bool isLost = false)
    {
        answers.Enqueue(isLost ? new TaskCompletionSource<JobStatus>().Task : Task.FromResult(Running));
        return this;
    }

    /// <summary>The next watch gets these events and then its end, or nothing more.</summary>
    public FakeJob Shows(bool ends, params JobEvent[] events)
    {
        watches.Enqueue((events, ends));
        return this;
    }

    /// <inheritdoc/>
    public Task<JobStatus> GetStatus() => answers.TryDequeue(out var answer) ? answer : Task.FromResult(Running);

    /// <inheritdoc/>
    public async IAsyncEnumerable<JobEvent> Watch(long fromSequence, [EnumeratorCancellation] CancellationToken cancellation = default)
    {
        WatchedFrom.Add(fromSequence);
        var (events, ends) = watches.Dequeue();
        foreach (var item in events)
            yield return item;
        if (!ends)
            await new TaskCompletionSource().Task.WaitAsync(cancellation);
    }

    /// <inheritdoc/>
    public Task<SubmitResult> Submit(JobSpec spec) => throw new NotSupportedException();

    /// <inheritdoc/>
    public Task<JobStatus> Cancel(bool save) => throw new NotSupportedException();
}
