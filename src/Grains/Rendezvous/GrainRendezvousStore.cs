using System.Diagnostics;
using System.Runtime.ExceptionServices;
using Megatron.Compute.Distributed;
using Megatron.Grains.Ranks;

namespace Megatron.Grains.Rendezvous;

/// <summary>
/// The rendezvous of an attempt as its ranks see it: blocking calls on their own threads, answered by the attempt's grain. Never call it from a
/// grain or from a pool thread.
/// </summary>
public sealed class GrainRendezvousStore : IRendezvousStore
{
    private static readonly TimeSpan oneWait = TimeSpan.FromSeconds(1);

    /// <summary>How long a call that may be repeated is repeated while the cluster loses a silo and its grains find one another again.</summary>
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(10);

    /// <summary>The same while no silo is known that owns the device of rank 0: word of a new silo is faster.</summary>
    private static readonly TimeSpan patienceForItsSilo = TimeSpan.FromSeconds(2);

    private static readonly TimeSpan betweenCalls = TimeSpan.FromMilliseconds(100);

    private readonly IRendezvousGrain grain;

    /// <param name="key">See <see cref="IRendezvousGrain.KeyOf"/>.</param>
    public GrainRendezvousStore(IGrainFactory grains, string key) => grain = grains.GetGrain<IRendezvousGrain>(key);

    /// <inheritdoc/>
    public void Set(string key, ReadOnlySpan<byte> value)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(value.Length);
        byte[] copy = value.ToArray();
        Wait(async () =>
        {
            await grain.Set(key, copy);
            return true;
        }, CancellationToken.None, mayRepeat: true);
    }

    /// <inheritdoc/>
    public byte[] Get(string key, TimeSpan timeout, CancellationToken cancellation)
    {
        RendezvousLimits.CheckKey(key);
        long started = Stopwatch.GetTimestamp();
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            var left = timeout - Stopwatch.GetElapsedTime(started);
            var wait = left < TimeSpan.Zero ? TimeSpan.Zero : left < oneWait ? left : oneWait;
            if (Wait(() => grain.Get(key, wait), cancellation, mayRepeat: true) is { } value)
                return value;
            if (left <= TimeSpan.Zero)
                throw InProcessRendezvousStore.RendezvousTimeout(key, timeout);
        }
    }

    /// <inheritdoc/>
    public long Add(string key, long amount)
    {
        RendezvousLimits.CheckKey(key);
        return Wait(() => grain.Add(key, amount), CancellationToken.None);
    }

    /// <inheritdoc/>
    public bool CompareSet(string key, byte[]? expected, ReadOnlySpan<byte> desired)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(desired.Length);
        byte[] copy = desired.ToArray();
        return Wait(() => grain.CompareSet(key, expected, copy), CancellationToken.None);
    }

    /// <inheritdoc/>
    public IReadOnlyList<string> Keys(string prefix) => Wait(() => grain.Keys(prefix), CancellationToken.None, mayRepeat: true);

    // The rank's thread waits on an event; the call runs on pool threads and sets it. A timeout means unknown: only what changes nothing when it is done twice
    // is repeated.
    private static T Wait<T>(Func<Task<T>> call, CancellationToken cancellation, bool mayRepeat = false)
    {
        var done = new ManualResetEventSlim();
        T? value = default;
        ExceptionDispatchInfo? fault = null;
        async Task RunAsync()
        {
            try
            {
                value = mayRepeat ? await RepeatAsync(call, cancellation) : await call();
            }
            catch (Exception exception)
            {
                fault = ExceptionDispatchInfo.Capture(exception);
            }
            done.Set();
        }
        _ = RunAsync();
        done.Wait(cancellation);
        if (fault?.SourceException is { } problem and (OrleansException or TimeoutException or RendezvousClosedException))
            throw new RankFaultException($"The rendezvous does not answer: {problem.Message}", inner: problem);
        fault?.Throw();
        return value is null && typeof(T).IsValueType ? throw new InvalidOperationException("The rendezvous gave no answer.") : value!; // a null answer is one
    }

    private static async Task<T> RepeatAsync<T>(Func<Task<T>> call, CancellationToken cancellation)
    {
        long started = Stopwatch.GetTimestamp();
        while (true)
        {
            try
            {
                return await call();
            }
            catch (Exception fault) when (fault is OrleansException or TimeoutException && Stopwatch.GetElapsedTime(started) < (fault is DeviceUnknownException ? patienceForItsSilo : patience))
            {
                await Task.Delay(betweenCalls, cancellation);
            }
        }
    }
}
