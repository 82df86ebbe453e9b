using System.Text.RegularExpressions;

namespace Megatron.Compute.Tokenization;

/// <summary>What becomes of the matches of a <see cref="SplitStep"/>; names as in tokenizer.json.</summary>
internal enum SplitBehavior
{
    /// <summary>Matches vanish.</summary>
    Removed,

    /// <summary>Each match is a piece.</summary>
    Isolated,

    /// <summary>Each match joins the piece before it.</summary>
    MergedWithPrevious,

    /// <summary>Each match joins the piece after it.</summary>
    MergedWithNext,

    /// <summary>Matches that touch each other are one piece.</summary>
    Contiguous,
}

/// <summary>A stretch of the shadow text.</summary>
internal readonly record struct TextRange(int Start, int Length);

/// <summary>
/// One cut of a pre-tokenizer. The pattern sees a piece alone, not what stands around it; text that it does not match stays as a piece.
/// </summary>
internal sealed class SplitStep(Regex pattern, SplitBehavior behavior, bool isInverted)
{
    /// <summary>Appends the pieces of one range; empty ones are left out.</summary>
    public void Split(string shadow, TextRange range, List<TextRange> output)
    {
        if (behavior == SplitBehavior.Isolated)
            SplitIsolated(shadow, range, output);
        else
            Join(Parts(shadow, range), output);
    }

    private void SplitIsolated(string shadow, TextRange range, List<TextRange> output)
    {
        var done = 0;
        foreach (var match in pattern.EnumerateMatches(shadow.AsSpan(range.Start, range.Length)))
        {
            if (match.Index > done)
                output.Add(new TextRange(range.Start + done, match.Index - done));
            if (match.Length > 0)
                output.Add(new TextRange(range.Start + match.Index, match.Length));
            done = match.Index + match.Length;
        }

        if (done < range.Length)
            output.Add(new TextRange(range.Start + done, range.Length - done));
    }

    /// <summary>All of the range as matches and gaps.</summary>
    private List<(int Start, int End, bool IsMatch)> Parts(string shadow, TextRange range)
    {
        var parts = new List<(int, int, bool)>();
        var done = 0;
        foreach (var match in pattern.EnumerateMatches(shadow.AsSpan(range.Start, range.Length)))
        {
            if (match.Index > done)
                parts.Add((range.Start + done, range.Start + match.Index, isInverted));
            done = match.Index + match.Length;
            parts.Add((range.Start + match.Index, range.Start + done, !isInverted));
        }

        if (done < range.Length)
            parts.Add((range.Start + done, range.Start + range.Length, isInverted));
        return parts;
    }

    private void Join(List<(int Start, int End, bool IsMatch)> parts, List<TextRange> output)
    {
        var joined = new List<(int Start, int End)>();
        for (var i = 0; i < parts.Count; i++)
        {
            var (start, end, isMatch) = parts[i];
            var wasMatch = i > 0 && parts[i - 1].IsMatch;
            var joinsLast = joined.Count > 0 && behavior switch
            {
                SplitBehavior.Contiguous => isMatch == wasMatch,
                SplitBehavior.MergedWithPrevious => isMatch && !wasMatch,
                SplitBehavior.MergedWithNext => !isMatch && wasMatch,
                _ => false,
            };
            if (behavior == SplitBehavior.Removed && isMatch)
                continue;
            if (joinsLast)
                joined[^1] = (joined[^1].Start, end);
            else
                joined.Add((start, end));
        }

        foreach (var (start, end) in joined)
        {
            if (end > start)
                output.Add(new TextRange(start, end - start));
        }
    }
}
