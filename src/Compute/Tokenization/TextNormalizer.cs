using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>Unicode normalization forms, applied in order.</summary>
internal sealed class TextNormalizer(IReadOnlyList<NormalizationForm> forms)
{
    /// <summary>A noncharacter on which <see cref="string.Normalize()"/> throws; nothing composes across it.</summary>
    private const char Refused = '\uFFFE';

    /// <summary>
    /// Without ICU the runtime returns texts unchanged instead of normalizing them, and silently: every id after that would be wrong.
    /// Throws <see cref="ConfigException"/> TOK008.
    /// </summary>
    public static void CheckUnicodeData()
    {
        if ("e\u0301".Normalize(NormalizationForm.FormC) != "\u00E9")
            throw new ConfigException("TOK008",
                "Unicode normalization does not work in this process (libicu is missing or InvariantGlobalization is set), so "
                + "token ids would be wrong; install libicu and unset DOTNET_SYSTEM_GLOBALIZATION_INVARIANT.");
    }

    /// <summary>The normalized text. The text must be well-formed UTF-16.</summary>
    public string Apply(string text)
    {
        if (forms.Count == 0 || Ascii.IsValid(text))
            return text;
        foreach (var form in forms)
            text = string.Join(Refused, text.Split(Refused).Select(part => part.Normalize(form)));
        return text;
    }
}
