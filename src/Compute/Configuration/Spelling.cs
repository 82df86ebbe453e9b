namespace Megatron.Compute.Configuration;

/// <summary>Finds what a misspelt word was meant to be.</summary>
public static class Spelling
{
    /// <summary>The candidate at the least edit distance; null when that is above a third of the word's length (at least 1).</summary>
    public static string? Nearest(string word, IEnumerable<string> candidates)
    {
        var best = candidates.Select(known => (known, distance: EditDistance(word, known)))
            .OrderBy(pair => pair.distance).ThenBy(pair => pair.known, StringComparer.Ordinal).First();
        return best.distance <= Math.Max(1, word.Length / 3) ? best.known : null;
    }

    /// <summary>Levenshtein distance.</summary>
    private static int EditDistance(string left, string right)
    {
        var previous = Enumerable.Range(0, right.Length + 1).ToArray();
        var current = new int[right.Length + 1];
        for (var i = 1; i <= left.Length; i++)
        {
            current[0] = i;
            for (var j = 1; j <= right.Length; j++)
            {
                var substitution = previous[j - 1] + (left[i - 1] == right[j - 1] ? 0 : 1);
                current[j] = Math.Min(substitution, Math.Min(previous[j], current[j - 1]) + 1);
            }

            (previous, current) = (current, previous);
        }

        return previous[right.Length];
    }
}
