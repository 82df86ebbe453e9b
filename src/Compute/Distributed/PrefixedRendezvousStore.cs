namespace Megatron.Compute.Distributed;

/// <summary>A view of another store in which every key begins with a prefix such as <c>job-7/attempt-2/</c>.</summary>
public sealed class PrefixedRendezvousStore(IRendezvousStore inner, string prefix) : IRendezvousStore
{
    /// <inheritdoc/>
    public void Set(string key, ReadOnlySpan<byte> value) => inner.Set(prefix + key, value);

    /// <inheritdoc/>
    public byte[] Get(string key, TimeSpan timeout, CancellationToken cancellation) => inner.Get(prefix + key, timeout, cancellation);

    /// <inheritdoc/>
    public long Add(string key, long amount) => inner.Add(prefix + key, amount);

    /// <inheritdoc/>
    public bool CompareSet(string key, byte[]? expected, ReadOnlySpan<byte> desired) => inner.CompareSet(prefix + key, expected, desired);

    /// <inheritdoc/>
    public IReadOnlyList<string> Keys(string keyPrefix) => [.. inner.Keys(prefix + keyPrefix).Select(key => key[prefix.Length..])];
}
