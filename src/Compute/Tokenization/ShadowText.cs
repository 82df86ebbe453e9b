using System.Globalization;
using System.Text;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// A text as regular expressions of a tokenizer must see it: one unit for each character. .NET matches UTF-16 units, so <c>\p{L}</c> and
/// its
/// like never match a character above U+FFFF; here each such character is replaced by a stand-in of the same general category.
/// </summary>
internal readonly struct ShadowText
{
    private readonly string _original;
    private readonly int[]? _originalIndexes;

    public ShadowText(string text)
    {
        _original = text;
        Shadow = text;
        if (!text.AsSpan().ContainsAnyInRange('\uD800', '\uDFFF'))
            return;

        var shadow = new StringBuilder(text.Length);
        _originalIndexes = new int[text.Length + 1];
        var index = 0;
        foreach (var rune in text.EnumerateRunes())
        {
            _originalIndexes[shadow.Length] = index;
            shadow.Append(rune.IsBmp ? (char)rune.Value : StandIn(Rune.GetUnicodeCategory(rune)));
            index += rune.Utf16SequenceLength;
        }

        _originalIndexes[shadow.Length] = index;
        Shadow = shadow.ToString();
    }

    /// <summary>The text to match on.</summary>
    public string Shadow { get; }

    /// <summary>The original characters of a stretch of <see cref="Shadow"/>.</summary>
    public ReadOnlySpan<char> Original(int start, int length)
    {
        if (_originalIndexes is null)
            return _original.AsSpan(start, length);
        var from = _originalIndexes[start];
        return _original.AsSpan(from, _originalIndexes[start + length] - from);
    }

    /// <summary>A character below U+10000 of a category; rare ones, so that no pattern names them.</summary>
    internal static char StandIn(UnicodeCategory category) => category switch
    {
        UnicodeCategory.UppercaseLetter => '\uA640',
        UnicodeCategory.LowercaseLetter => '\uA641',
        UnicodeCategory.TitlecaseLetter => '\u1F88',
        UnicodeCategory.ModifierLetter => '\uA015',
        UnicodeCategory.OtherLetter => '\uA000',
        UnicodeCategory.NonSpacingMark => '\uA66F',
        UnicodeCategory.SpacingCombiningMark => '\uA823',
        UnicodeCategory.EnclosingMark => '\uA670',
        UnicodeCategory.DecimalDigitNumber => '\uA620',
        UnicodeCategory.LetterNumber => '\uA6E6',
        UnicodeCategory.OtherNumber => '\uA830',
        UnicodeCategory.ConnectorPunctuation => '\uFE33',
        UnicodeCategory.DashPunctuation => '\u2E17',
        UnicodeCategory.OpenPunctuation => '\u2E22',
        UnicodeCategory.ClosePunctuation => '\u2E23',
        UnicodeCategory.InitialQuotePunctuation => '\u2E02',
        UnicodeCategory.FinalQuotePunctuation => '\u2E03',
        UnicodeCategory.OtherPunctuation => '\uA60D',
        UnicodeCategory.MathSymbol => '\uFB29',
        UnicodeCategory.CurrencySymbol => '\uA838',
        UnicodeCategory.ModifierSymbol => '\uA700',
        UnicodeCategory.OtherSymbol => '\uA490',
        UnicodeCategory.Format => '\u206A',
        UnicodeCategory.PrivateUse => '\uE000',
        _ => '\uFDD0',
    };
}
