using System.Runtime.CompilerServices;

namespace Megatron.Grains.Jobs;

/// <summary>
/// The newest events of a job in a ring, and those who wait for the next one. Used only inside the job grain's turns, which never run in parallel:
/// hence no lock.
/// </summary>
public sealed class JobEventLog
{
    private readonly JobEvent[] ring;
    private TaskCompletionSource changed = NewSignal();

    private long firstEver;

    public JobEventLog(int capacity) => ring = new JobEvent[capacity];

    /// <summary>Sequence of the newest event, 0 when there is none.</summary>
    public long LastSequence { get; private set; }

    /// <summary>True once the job has ended: watchers get what is left and are done.</summary>
    public bool IsComplete { get; private set; }

    private long FirstSequence => Math.Max(firstEver + 1, LastSequence - ring.Length + 1);

    /// <summary>
    /// Called before the first event of an activation: numbers go on after <paramref name="lastSequence"/>, which is above all that an earlier
    /// activation may have given; what it held is lost.
    /// </summary>
    public void ContinueAfter(long lastSequence) => LastSequence = firstEver = lastSequence;

    /// <summary>Adds the event that <paramref name="create"/> makes for the next sequence number and wakes the watchers.</summary>
    public void Append(Func<long, JobEvent> create)
    {
        var item = create(LastSequence + 1);
        ring[LastSequence % ring.Length] = item;
        LastSequence++;
        Wake();
    }

    /// <summary>No event follows.</summary>
    public void Complete()
    {
        IsComplete = true;
        Wake();
    }

    /// <summary>
    /// Replays what the ring holds from <paramref name="fromSequence"/> on, then follows; ends when the job has ended and everything was given.
    /// When events were lost to the ring, a <see cref="JobEventsSkipped"/> stands in their place.
    /// </summary>
    public async IAsyncEnumerable<JobEvent> ReadFrom(long fromSequence, [EnumeratorCancellation] CancellationToken cancellation)
    {
        long next = Math.Max(1, fromSequence);
        while (true)
        {
            if (next < FirstSequence)
            {
                long skipped = FirstSequence - next;
                next = FirstSequence;
                if (LastSequence >= next)
                    yield return new JobEventsSkipped(next - 1, ring[(next - 1) % ring.Length].Time, next == firstEver + 1 ? 0 : skipped);
            }
            else if (next <= LastSequence)
            {
                yield return ring[(next++ - 1) % ring.Length];
            }
            else if (IsComplete)
            {
                yield break;
            }
            else
            {
                await changed.Task.WaitAsync(cancellation);
            }
        }
    }

    private void Wake()
    {
        var old = changed;
        changed = NewSignal();
        old.SetResult();
    }

    private static TaskCompletionSource NewSignal() => new(TaskCreationOptions.RunContinuationsAsynchronously);
}
