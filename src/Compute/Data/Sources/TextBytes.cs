using System.Buffers;
using System.Text;
using System.Text.Unicode;

namespace Megatron.Compute.Data.Sources;

/// <summary>Which bytes are text.</summary>
internal static class TextBytes
{
    /// <summary>Offset of the first NUL or byte that is not UTF-8 and what it is, or −1.</summary>
    public static int FindNoText(ReadOnlySpan<byte> bytes, out string what)
    {
        var at = bytes.IndexOf((byte)0);
        what = "a NUL byte";
        if (at >= 0 || Utf8.IsValid(bytes)) return at;
        at = 0;
        while (Rune.DecodeFromUtf8(bytes[at..], out _, out var consumed) == OperationStatus.Done) at += consumed;
        what = $"the byte 0x{bytes[at]:X2}, which is not UTF-8";
        return at;
    }
}
