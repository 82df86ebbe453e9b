using System.Globalization;
using System.Text;

namespace Megatron.Compute.Checkpointing;

/// <summary>Makes text from a foreign file safe to print: one line, bounded, no control characters.</summary>
internal static class Printable
{
    private const int LengthMax = 120;

    /// <summary>The text in double quotes; control characters and lone surrogates as <c>\uXXXX</c>, cut after 120 characters.</summary>
    public static string Quote(string text)
    {
        var builder = new StringBuilder("\"");
        foreach (var character in text.AsSpan(0, Math.Min(text.Length, LengthMax)))
        {
            if (char.IsControl(character) || char.IsSurrogate(character) || char.GetUnicodeCategory(character) == UnicodeCategory.Format)
                builder.Append(CultureInfo.InvariantCulture, $"\\u{(int)character:x4}");
            else builder.Append(character);
        }
        return builder.Append(text.Length > LengthMax ? "…\"" : "\"").ToString();
    }
}
