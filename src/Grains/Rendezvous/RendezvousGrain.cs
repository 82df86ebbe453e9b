using Megatron.Compute.Distributed;
using Megatron.Grains.Ranks;
using Orleans.Concurrency;

namespace Megatron.Grains.Rendezvous;

/// <summary>
/// Reentrant: whoever waits for a key must not keep others from setting it. Between two awaits a call only reads or only writes the store once, so
/// interleaving changes nothing.
/// </summary>
[Reentrant, DeviceOwnerPlacement, CollectionAgeLimit(Hours = 1)]
internal sealed class RendezvousGrain : Grain, IRendezvousGrain
{
    private static readonly TimeSpan longestWait = TimeSpan.FromSeconds(2);

    private readonly RendezvousRooms rooms;
    private readonly ControlClock clock;
    private TaskCompletionSource changed = NewSignal();

    public RendezvousGrain(RendezvousRooms rooms, ControlClock clock) => (this.rooms, this.clock) = (rooms, clock);

    public Task Open(string jobId)
    {
        rooms.Open(this.GetPrimaryKeyString(), jobId);
        return Task.CompletedTask;
    }

    public Task Close()
    {
        rooms.Close(this.GetPrimaryKeyString());
        Wake();
        DeactivateOnIdle();
        return Task.CompletedTask;
    }

    public Task Set(string key, byte[] value)
    {
        Opened().Set(key, value);
        Wake();
        return Task.CompletedTask;
    }

    public async Task<byte[]?> Get(string key, TimeSpan wait)
    {
        long started = clock.Time.GetTimestamp();
        var limit = wait < longestWait ? wait : longestWait;
        while (true)
        {
            if (Opened().TryGet(key) is { } value)
                return value;
            var left = limit - clock.Time.GetElapsedTime(started);
            if (left <= TimeSpan.Zero)
                return null;
            await Task.WhenAny(changed.Task, Task.Delay(left, clock.Time));
        }
    }

    public Task<long> Add(string key, long amount)
    {
        long sum = Opened().Add(key, amount);
        Wake();
        return Task.FromResult(sum);
    }

    public Task<bool> CompareSet(string key, byte[]? expected, byte[] desired)
    {
        bool isSet = Opened().CompareSet(key, expected, desired);
        Wake();
        return Task.FromResult(isSet);
    }

    public Task<IReadOnlyList<string>> Keys(string prefix) => Task.FromResult(Opened().Keys(prefix));

    private InProcessRendezvousStore Opened() =>
        rooms.Find(this.GetPrimaryKeyString()) ?? throw new RendezvousClosedException($"attempt {this.GetPrimaryKeyString()} is over or was never begun; its ranks must not meet");

    private void Wake()
    {
        var old = changed;
        changed = NewSignal();
        old.SetResult();
    }

    private static TaskCompletionSource NewSignal() => new(TaskCreationOptions.RunContinuationsAsynchronously);
}
