namespace Megatron.Compute.Tokenization;

/// <summary>
/// The 256 printable characters that stand for bytes in a byte-level vocabulary (GPT-2's table): visible Latin-1 characters stand for
/// themselves, the other 68 bytes for U+0100 and up in order.
/// </summary>
internal static class ByteAlphabet
{
    private const int NumChars = 256 + 68;

    private static readonly char[] CharOfByte = new char[256];
    private static readonly short[] ByteOfChar = new short[NumChars];

    static ByteAlphabet()
    {
        Array.Fill(ByteOfChar, (short)-1);
        var next = 256;
        for (var value = 0; value < 256; value++)
        {
            var isVisible = value is >= '!' and <= '~' or >= 0xA1 and <= 0xAC or >= 0xAE;
            CharOfByte[value] = (char)(isVisible ? value : next++);
            ByteOfChar[CharOfByte[value]] = (short)value;
        }
    }

    /// <summary>The character that stands for a byte.</summary>
    public static char ToChar(byte value) => CharOfByte[value];

    /// <summary>The byte that a character stands for, or −1.</summary>
    public static int ToByte(char character) => character < NumChars ? ByteOfChar[character] : -1;
}
