namespace Megatron.Silo;

/// <summary>What a lease is worth at a moment.</summary>
public enum LeaseState
{
    /// <summary>The cluster was in reach a moment ago.</summary>
    Held,

    /// <summary>It was not: every side effect must stop.</summary>
    Lost,

    /// <summary>It has not been in reach for so long that the process should end.</summary>
    Expired,
}

/// <summary>
/// The arithmetic of a silo's lease, without a thread: a contact with Redis or with a majority of the last known members renews it. A look at the
/// clock that comes late counts as a loss by itself: after a pause of the whole process nothing is known about what others did meanwhile.
/// </summary>
public sealed class LeaseClock
{
    /// <summary>Without a contact for this long the lease is lost.</summary>
    public static readonly TimeSpan Length = TimeSpan.FromSeconds(2.5);

    /// <summary>Without a contact for this long the process ends: so long that it is gone ten seconds after it was cut off.</summary>
    public static readonly TimeSpan Grace = TimeSpan.FromSeconds(9);

    private readonly TimeProvider time;
    private readonly Lock gate = new();
    private long contactAt;
    private long lookedAt;

    /// <param name="time">Its timestamps must be monotonic.</param>
    public LeaseClock(TimeProvider time)
    {
        this.time = time;
        contactAt = lookedAt = time.GetTimestamp();
    }

    /// <summary>A contact was asked for at a time and has succeeded: what counts is when it was asked for.</summary>
    public void Renew(long askedAt)
    {
        lock (gate)
            contactAt = Math.Max(contactAt, askedAt);
    }

    /// <summary>Looks at the clock; called several times a second.</summary>
    public LeaseState Look()
    {
        lock (gate)
        {
            long now = time.GetTimestamp();
            bool wasPaused = time.GetElapsedTime(lookedAt, now) > Length;
            lookedAt = now;
            var silent = time.GetElapsedTime(contactAt, now);
            return silent > Grace && !wasPaused ? LeaseState.Expired : silent > Length || wasPaused ? LeaseState.Lost : LeaseState.Held;
        }
    }

    /// <summary>Whether so many members, this one included, are a majority of all.</summary>
    public static bool IsMajority(int numReached, int numMembers) => 2 * numReached > numMembers;
}
