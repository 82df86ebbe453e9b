using System.Buffers;
using System.Globalization;
using System.Text;

namespace Megatron.Compute.Tokenization;

/// <summary>A stretch of text: an added token (<c>Id</c> ≥ 0) or text between such tokens (<c>Id</c> = −1).</summary>
internal readonly record struct TextSegment(int Start, int Length, int Id);

/// <summary>Cuts added tokens out of a text: the leftmost match, and of those the longest, by a trie over UTF-16 units.</summary>
internal sealed class AddedTokenMatcher
{
    private readonly Node _root = new();
    private readonly SearchValues<char> _firstChars;

    /// <param name="tokens">Tokens to look for.</param>
    /// <param name="textOf">The text looked for: the content, normalized or not.</param>
    public AddedTokenMatcher(IEnumerable<AddedToken> tokens, Func<AddedToken, string> textOf)
    {
        foreach (var token in tokens)
        {
            var text = textOf(token);
            if (text.Length == 0)
                continue;
            var node = _root;
            foreach (var character in text)
            {
                if (!node.Children.TryGetValue(character, out var child))
                    node.Children[character] = child = new Node();
                node = child;
            }

            node.Token = token;
        }

        _firstChars = SearchValues.Create([.. _root.Children.Keys]);
    }

    /// <summary>All of <paramref name="text"/> in segments, left to right; none is empty unless a stripping token took its text.</summary>
    public List<TextSegment> Split(string text)
    {
        var segments = new List<TextSegment>();
        var done = 0;
        for (var at = 0; at < text.Length;)
        {
            var offset = text.AsSpan(at).IndexOfAny(_firstChars);
            if (offset < 0)
                break;
            at += offset;
            var (token, end) = Longest(text, at);
            if (token is null)
            {
                at++;
                continue;
            }

            var start = at;
            at = end;
            if (token.IsSingleWord && (EndsWithWord(text.AsSpan(0, start)) || StartsWithWord(text.AsSpan(end))))
                continue;
            if (token.StripsLeft)
                start = text.AsSpan(0, start).TrimEnd().Length;
            if (token.StripsRight)
                end = text.Length - text.AsSpan(end).TrimStart().Length;

            // A token before this one may already have taken the white space.
            start = Math.Max(start, done);
            if (start > done)
                segments.Add(new TextSegment(done, start - done, -1));
            segments.Add(new TextSegment(start, Math.Max(0, end - start), token.Id));
            done = Math.Max(done, end);
        }

        if (done < text.Length)
            segments.Add(new TextSegment(done, text.Length - done, -1));
        return segments;
    }

    private (AddedToken? Token, int End) Longest(string text, int start)
    {
        AddedToken? found = null;
        var end = start;
        var node = _root;
        for (var i = start; i < text.Length && node.Children.TryGetValue(text[i], out var child); i++)
        {
            node = child;
            if (node.Token is null)
                continue;
            found = node.Token;
            end = i + 1;
        }

        return (found, end);
    }

    private static bool StartsWithWord(ReadOnlySpan<char> text) =>
        Rune.DecodeFromUtf16(text, out var rune, out _) == OperationStatus.Done && IsWord(rune);

    private static bool EndsWithWord(ReadOnlySpan<char> text) =>
        Rune.DecodeLastFromUtf16(text, out var rune, out _) == OperationStatus.Done && IsWord(rune);

    /// <summary>Word characters of UTS #18: letters, marks, digits, connectors and the two joiners.</summary>
    private static bool IsWord(Rune rune) => rune.Value is 0x200C or 0x200D || Rune.GetUnicodeCategory(rune) is
        UnicodeCategory.UppercaseLetter or UnicodeCategory.LowercaseLetter or UnicodeCategory.TitlecaseLetter
        or UnicodeCategory.ModifierLetter or UnicodeCategory.OtherLetter or UnicodeCategory.LetterNumber
        or UnicodeCategory.NonSpacingMark or UnicodeCategory.SpacingCombiningMark or UnicodeCategory.EnclosingMark
        or UnicodeCategory.DecimalDigitNumber or UnicodeCategory.ConnectorPunctuation;

    private sealed class Node
    {
        public Dictionary<char, Node> Children { get; } = [];

        public AddedToken? Token { get; set; }
    }
}
