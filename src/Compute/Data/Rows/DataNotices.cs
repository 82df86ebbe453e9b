namespace Megatron.Compute.Data.Rows;

/// <summary>Things worth one line to the user, counted over all rows. Not safe for several threads.</summary>
internal sealed class DataNotices
{
    private readonly Dictionary<string, int> _counts = [];

    /// <summary>Counts one occurrence.</summary>
    public void Count(string what) => _counts[what] = _counts.GetValueOrDefault(what) + 1;

    /// <summary>One line for each thing in the order of first occurrence, with its count.</summary>
    public IEnumerable<string> Lines() => _counts.Select(pair => $"{pair.Key} ({pair.Value} ×)");
}
