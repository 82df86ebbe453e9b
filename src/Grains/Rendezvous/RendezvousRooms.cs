using System.Collections.Concurrent;
using Megatron.Compute.Distributed;

namespace Megatron.Grains.Rendezvous;

/// <summary>What ranks that meet on this silo have told each other. A silo singleton: an activation of the grain may go, and what was said must stay.</summary>
internal sealed class RendezvousRooms
{
    private readonly ConcurrentDictionary<string, (string JobId, InProcessRendezvousStore Store)> rooms = new(StringComparer.Ordinal);

    /// <summary>What is known in an attempt's room; null when it is not open.</summary>
    public InProcessRendezvousStore? Find(string key) => rooms.TryGetValue(key, out var room) ? room.Store : null;

    /// <summary>Opens the room of an attempt, if it is not; the job's older ones are over.</summary>
    public void Open(string key, string jobId)
    {
        foreach (var (other, room) in rooms)
            if (room.JobId == jobId && other != key)
                Close(other);
        rooms.TryAdd(key, (jobId, new InProcessRendezvousStore()));
    }

    /// <summary>Forgets a room.</summary>
    public void Close(string key) => rooms.TryRemove(key, out _);
}
