using System.Globalization;
using System.Text.RegularExpressions;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Cuts a text into the pieces inside which byte pairs are merged: splits in order, each on the pieces of the one before, ending with the
/// byte-level step.
/// </summary>
/// <param name="steps">Splits before the byte-level step.</param>
/// <param name="addsPrefixSpace">Whether the byte-level step puts a space in front of each piece that has none.</param>
/// <param name="lastStep">The byte-level step's own split, after the space; null for none.</param>
internal sealed class PreTokenizer(IReadOnlyList<SplitStep> steps, bool addsPrefixSpace, SplitStep? lastStep)
{
    /// <summary>The split of a byte-level step that brings its own pattern (GPT-2's).</summary>
    public static SplitStep ByteLevelStep() =>
        new(Compile(@"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), SplitBehavior.Isolated, false);

    /// <summary>
    /// A pattern of a tokenizer.json as .NET expression. Throws <see cref="ConfigException"/> TOK007 when .NET cannot express it.
    /// </summary>
    public static Regex Compile(string pattern)
    {
        // Case folding of the original engine lets a long s match in the contraction 's; .NET's does not.
        var translated = pattern.Replace("(?i:'s|", "(?i:'[s\u017F]|", StringComparison.Ordinal);
        try
        {
            // The time-out only guards against a hostile pattern; a piece of ordinary text takes microseconds.
            const RegexOptions Options = RegexOptions.Compiled | RegexOptions.CultureInvariant | RegexOptions.Multiline;
            return new Regex(translated, Options, TimeSpan.FromSeconds(20));
        }
        catch (ArgumentException error)
        {
            throw new ConfigException("TOK007",
                $"The pre-tokenizer pattern '{pattern}' is not supported ({error.Message}); this tokenizer cannot be used.");
        }
    }

    /// <summary>
    /// Calls <paramref name="onPiece"/> with each piece, left to right. Throws <see cref="ConfigException"/> TOK009 when a pattern takes forever.
    /// </summary>
    public void Split<TState>(string text, TState state, PieceAction<TState> onPiece)
    {
        var shadow = new ShadowText(text);
        var ranges = new List<TextRange> { new(0, shadow.Shadow.Length) };
        foreach (var step in steps)
            ranges = Apply(step, shadow.Shadow, ranges);
        if (lastStep is not null && !addsPrefixSpace)
            ranges = Apply(lastStep, shadow.Shadow, ranges);

        foreach (var range in ranges)
        {
            var piece = shadow.Original(range.Start, range.Length);
            if (addsPrefixSpace)
                SplitPrefixed(piece, state, onPiece);
            else
                onPiece(piece, state);
        }
    }

    private void SplitPrefixed<TState>(ReadOnlySpan<char> piece, TState state, PieceAction<TState> onPiece)
    {
        var text = piece[0] == ' ' ? piece.ToString() : string.Concat(" ", piece);
        if (lastStep is null)
        {
            onPiece(text, state);
            return;
        }

        var shadow = new ShadowText(text);
        foreach (var range in Apply(lastStep, shadow.Shadow, [new TextRange(0, shadow.Shadow.Length)]))
            onPiece(shadow.Original(range.Start, range.Length), state);
    }

    private static List<TextRange> Apply(SplitStep step, string shadow, List<TextRange> ranges)
    {
        var output = new List<TextRange>(Math.Max(ranges.Count, shadow.Length / 4));
        try
        {
            foreach (var range in ranges)
                step.Split(shadow, range, output);
        }
        catch (RegexMatchTimeoutException error)
        {
            throw new ConfigException("TOK009",
                $"The pre-tokenizer pattern '{error.Pattern}' gave no result on a text of {shadow.Length} characters within "
                + $"{error.MatchTimeout.TotalSeconds.ToString(CultureInfo.InvariantCulture)} s; this tokenizer cannot be used.");
        }

        return output;
    }
}

/// <summary>Takes one piece of text.</summary>
internal delegate void PieceAction<in TState>(ReadOnlySpan<char> piece, TState state);
