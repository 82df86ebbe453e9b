namespace Megatron.Compute.Native;

/// <summary>
/// How long libtorch's current stream of one thread has stood waiting for other streams: the device's time between a mark just before each wait and one
/// just after it. Nobody waits for the marks: those that the device has not passed yet count in a later reading.
/// </summary>
/// <remarks>
/// Used by one thread. A wait that is over before it begins counts with the few microseconds between two marks. Not for a stream that is being recorded into
/// a <see cref="CudaGraph"/>, which only ranks without a group are (GRAPH002).
/// </remarks>
internal sealed class StreamWaits(int device) : IDisposable
{
    private readonly CudaStream events = CudaStream.EventsOf(device);
    private readonly Queue<(nint Before, nint After)> pending = [];
    private readonly Stack<(nint Before, nint After)> free = [];
    private TimeSpan total;

    /// <summary>As <see cref="CudaStream.CurrentFollows"/>, timed.</summary>
    public void CurrentFollows(nint @event)
    {
        if (free.Count == 0) Collect(); // also where nobody reads the sum, as in an evaluation
        var (before, after) = free.TryPop(out var used) ? used : (events.CreateTimedEvent(), events.CreateTimedEvent());
        events.RecordOnCurrent(before);
        events.CurrentFollows(@event);
        events.RecordOnCurrent(after);
        pending.Enqueue((before, after));
    }

    /// <summary>The sum over the waits that are over.</summary>
    /// <exception cref="InvalidOperationException">The device has failed.</exception>
    public TimeSpan Total
    {
        get
        {
            Collect();
            return total;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var (before, after) in pending.Concat(free))
        {
            events.DestroyEvent(before);
            events.DestroyEvent(after);
        }
        pending.Clear();
        free.Clear();
    }

    private void Collect()
    {
        while (pending.TryPeek(out var marks) && events.IsDone(marks.After))
        {
            total += events.Elapsed(marks.Before, marks.After);
            free.Push(pending.Dequeue());
        }
    }
}
