namespace Megatron.Compute.Data.Prepared;

/// <summary>The opened sources of a run.</summary>
internal sealed class PreparedSources : IDisposable
{
    /// <summary>In the order of the data sets and of their files.</summary>
    public List<PreparedSource> Items { get; } = [];

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var source in Items) source.Dispose();
        Items.Clear();
    }
}
