using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Megatron.Compute.Distributed;

/// <summary>A store for ranks that are threads of one process; also what <see cref="TcpRendezvousServer"/> keeps its keys in.</summary>
public sealed class InProcessRendezvousStore : IRendezvousStore
{
    // A Monitor object and not a Lock: readers wait on it for pulses.
    private readonly object gate = new();
    private readonly Dictionary<string, byte[]> values = [];

    /// <inheritdoc/>
    public void Set(string key, ReadOnlySpan<byte> value)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(value.Length);
        lock (gate) Write(key, value.ToArray());
    }

    /// <inheritdoc/>
    public byte[] Get(string key, TimeSpan timeout, CancellationToken cancellation)
    {
        using var registration = cancellation.Register(() =>
        {
            lock (gate) Monitor.PulseAll(gate);
        });
        return TryGet(key, timeout, cancellation) ?? throw RendezvousTimeout(key, timeout);
    }

    /// <inheritdoc/>
    public long Add(string key, long amount)
    {
        RendezvousLimits.CheckKey(key);
        lock (gate)
        {
            var old = 0L;
            if (values.TryGetValue(key, out var bytes) && !long.TryParse(bytes, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out old))
                throw new InvalidOperationException($"Rendezvous key {key} does not hold a counter.");
            var sum = old + amount;
            Write(key, Encoding.ASCII.GetBytes(sum.ToString(CultureInfo.InvariantCulture)));
            return sum;
        }
    }

    /// <inheritdoc/>
    public bool CompareSet(string key, byte[]? expected, ReadOnlySpan<byte> desired)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(desired.Length);
        lock (gate)
        {
            var isSet = values.TryGetValue(key, out var current);
            if (isSet != expected is not null || (isSet && !current.AsSpan().SequenceEqual(expected))) return false;
            Write(key, desired.ToArray());
            return true;
        }
    }

    /// <inheritdoc/>
    public IReadOnlyList<string> Keys(string prefix)
    {
        lock (gate) return [.. values.Keys.Where(key => key.StartsWith(prefix, StringComparison.Ordinal)).Order(StringComparer.Ordinal)];
    }

    /// <summary>The value, or null when nobody has set it.</summary>
    public byte[]? TryGet(string key) => TryGet(key, TimeSpan.Zero, CancellationToken.None);

    /// <summary>The value, or null when it was not set in time; the caller makes the token pulse the gate.</summary>
    internal byte[]? TryGet(string key, TimeSpan timeout, CancellationToken cancellation)
    {
        RendezvousLimits.CheckKey(key);
        var started = Stopwatch.GetTimestamp();
        lock (gate)
        {
            while (true)
            {
                cancellation.ThrowIfCancellationRequested();
                if (values.TryGetValue(key, out var value)) return [.. value];
                var left = timeout - Stopwatch.GetElapsedTime(started);
                if (left <= TimeSpan.Zero) return null;
                Monitor.Wait(gate, left < OneMinute ? left : OneMinute);
            }
        }
    }

    /// <summary>The fault of a rank that waited in vain.</summary>
    public static RankFaultException RendezvousTimeout(string key, TimeSpan timeout) => new(FormattableString.Invariant(
        $"Nobody set the rendezvous key {key} within {timeout.TotalSeconds} s; a rank did not start or lost its way to the others."));

    private static readonly TimeSpan OneMinute = TimeSpan.FromMinutes(1); // Monitor.Wait does not take arbitrarily long times

    private void Write(string key, byte[] value)
    {
        values[key] = value;
        Monitor.PulseAll(gate);
    }
}
