using System.Buffers.Text;
using System.Globalization;

namespace Megatron.Compute.Data.Rows;

/// <summary>Finds <c>\u</c> escapes that JSON allows but text does not: NUL and halves of surrogate pairs.</summary>
internal static class JsonEscapes
{
    /// <summary>0-based byte offset of the first such escape and its six characters, or −1.</summary>
    public static int FindBad(ReadOnlySpan<byte> json, out string escape)
    {
        escape = "";
        var at = 0;
        while (true)
        {
            var next = json[at..].IndexOf((byte)'\\');
            if (next < 0 || at + next + 1 >= json.Length) return -1;
            at += next;
            if (json[at + 1] != (byte)'u')
            {
                at += 2;
                continue;
            }
            var unit = CodeUnit(json, at);
            if (unit < 0) return -1;
            if (char.IsHighSurrogate((char)unit) && CodeUnit(json, at + 6) is var low and >= 0 && char.IsLowSurrogate((char)low))
            {
                at += 12;
                continue;
            }
            if (unit == 0 || char.IsSurrogate((char)unit))
            {
                escape = string.Create(CultureInfo.InvariantCulture, $"\\u{unit:x4}");
                return at;
            }
            at += 6;
        }
    }

    // A malformed escape is left to the JSON parser, which says so with its position.
    private static int CodeUnit(ReadOnlySpan<byte> json, int at) =>
        at + 6 <= json.Length && json[at] == (byte)'\\' && json[at + 1] == (byte)'u'
        && Utf8Parser.TryParse(json.Slice(at + 2, 4), out ushort unit, out var used, 'x') && used == 4 ? unit : -1;
}
