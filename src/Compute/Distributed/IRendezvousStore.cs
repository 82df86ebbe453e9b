namespace Megatron.Compute.Distributed;

/// <summary>
/// A small key-value store through which ranks find one another before there is a process group: addresses, communicator ids, hashes.
/// Blocking and callable from any thread. Keys are at most <see cref="RendezvousLimits.MaxKeyLength"/> UTF-8 bytes, values at most
/// <see cref="RendezvousLimits.MaxValueLength"/>; both are checked here, not only on the other side.
/// </summary>
/// <remarks>One attempt of a job uses one prefix (<see cref="PrefixedRendezvousStore"/>), so that ranks of an older attempt meet nobody.</remarks>
public interface IRendezvousStore
{
    /// <summary>Writes a value and wakes those that wait for it.</summary>
    /// <exception cref="RankFaultException">The store's server is gone.</exception>
    void Set(string key, ReadOnlySpan<byte> value);

    /// <summary>Returns the value, waiting until somebody sets it.</summary>
    /// <exception cref="RankFaultException">It was not set in time, or the store's server is gone.</exception>
    /// <exception cref="OperationCanceledException">The caller gave up.</exception>
    byte[] Get(string key, TimeSpan timeout, CancellationToken cancellation);

    /// <summary>Adds to a 64-bit counter (absent: 0) and returns the new value. The value is stored as decimal text.</summary>
    /// <exception cref="InvalidOperationException">The key holds something that is not a counter.</exception>
    /// <exception cref="RankFaultException">The store's server is gone.</exception>
    long Add(string key, long amount);

    /// <summary>Writes <paramref name="desired"/> if the key holds <paramref name="expected"/>; says whether it did.</summary>
    /// <param name="expected">null: the key must be absent.</param>
    /// <exception cref="RankFaultException">The store's server is gone.</exception>
    bool CompareSet(string key, byte[]? expected, ReadOnlySpan<byte> desired);

    /// <summary>All keys that begin with <paramref name="prefix"/>, in ordinal order.</summary>
    /// <exception cref="RankFaultException">The store's server is gone.</exception>
    IReadOnlyList<string> Keys(string prefix);
}

/// <summary>Bounds that every store enforces.</summary>
public static class RendezvousLimits
{
    /// <summary>Bytes of a key in UTF-8.</summary>
    public const int MaxKeyLength = 512;

    /// <summary>Bytes of a value.</summary>
    public const int MaxValueLength = 1 << 20;

    /// <summary>Checks a key.</summary>
    /// <exception cref="ArgumentException">Too long, or empty.</exception>
    public static void CheckKey(string key)
    {
        var length = System.Text.Encoding.UTF8.GetByteCount(key);
        if (length is 0 or > MaxKeyLength) throw new ArgumentException($"A rendezvous key has {length} bytes; 1 to {MaxKeyLength} are allowed.");
    }

    /// <summary>Checks the length of a value.</summary>
    /// <exception cref="ArgumentException">Too long.</exception>
    public static void CheckValue(int length)
    {
        if (length > MaxValueLength) throw new ArgumentException($"A rendezvous value has {length} bytes; at most {MaxValueLength} are allowed.");
    }
}
