namespace Megatron.Compute.Data.Rows;

/// <summary>Things worth one line to the user, counted over all rows. Not safe for several threads.</summary>
internal sealed class DataNotices
{
    private readonly Dictionary<string, int> _counts = [];

    /// <summary>What was met and how often, in the order of first occurrence.</summary>
    public IReadOnlyDictionary<string, int> Counts => _counts;

    /// <summary>Counts one occurrence.</summary>
    public void Count(string what) => _counts[what] = _counts.GetValueOrDefault(what) + 1;

    /// <summary>Takes up the counts of later rows.</summary>
    public void Add(IReadOnlyDictionary<string, int> counts)
    {
        foreach (var (what, count) in counts) _counts[what] = _counts.GetValueOrDefault(what) + count;
    }

    /// <summary>One line for each thing in the order of first occurrence, with its count.</summary>
    public IEnumerable<string> Lines() => _counts.Select(pair => $"{pair.Key} ({pair.Value} ×)");
}
