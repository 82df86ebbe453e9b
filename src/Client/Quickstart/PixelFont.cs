namespace Megatron.Client.Quickstart;

/// <summary>
/// A font of five by seven pixels for digits, small letters and a few signs, so that a plot needs no font of the system. Capitals are shown as
/// small letters, unknown characters as a space.
/// </summary>
public static class PixelFont
{
    /// <summary>Pixels from one character to the next.</summary>
    public const int Advance = 6;

    /// <summary>Pixels of a character's height.</summary>
    public const int Height = 7;

    private const string Characters = "0123456789abcdefghijklmnopqrstuvwxyz.-:/";

    // Seven rows for each character; a row is five columns, the leftmost the highest bit of 16.
    private static readonly byte[][] glyphs =
    [
        [14, 17, 19, 21, 25, 17, 14], [4, 12, 4, 4, 4, 4, 14], [14, 17, 1, 6, 8, 16, 31], [14, 17, 1, 6, 1, 17, 14], [2, 6, 10, 18, 31, 2, 2],
        [31, 16, 30, 1, 1, 17, 14], [6, 8, 16, 30, 17, 17, 14], [31, 1, 2, 4, 8, 8, 8], [14, 17, 17, 14, 17, 17, 14], [14, 17, 17, 15, 1, 2, 12],
        [0, 0, 14, 1, 15, 17, 15], [16, 16, 22, 25, 17, 17, 30], [0, 0, 14, 16, 16, 17, 14], [1, 1, 13, 19, 17, 17, 15], [0, 0, 14, 17, 31, 16, 14],
        [6, 9, 8, 28, 8, 8, 8], [0, 15, 17, 17, 15, 1, 14], [16, 16, 22, 25, 17, 17, 17], [4, 0, 12, 4, 4, 4, 14], [2, 0, 6, 2, 2, 18, 12],
        [16, 16, 18, 20, 24, 20, 18], [12, 4, 4, 4, 4, 4, 14], [0, 0, 26, 21, 21, 17, 17], [0, 0, 22, 25, 17, 17, 17], [0, 0, 14, 17, 17, 17, 14],
        [0, 0, 30, 17, 30, 16, 16], [0, 0, 13, 19, 15, 1, 1], [0, 0, 22, 25, 16, 16, 16], [0, 0, 14, 16, 14, 1, 30], [8, 8, 28, 8, 8, 9, 6],
        [0, 0, 17, 17, 17, 19, 13], [0, 0, 17, 17, 17, 10, 4], [0, 0, 17, 17, 21, 21, 10], [0, 0, 17, 10, 4, 10, 17], [0, 0, 17, 17, 15, 1, 14],
        [0, 0, 31, 2, 4, 8, 31], [0, 0, 0, 0, 0, 12, 12], [0, 0, 0, 31, 0, 0, 0], [0, 12, 12, 0, 12, 12, 0], [1, 1, 2, 4, 8, 16, 16],
    ];

    /// <summary>True where the character has ink.</summary>
    /// <param name="row">0 to 6 from the top.</param>
    /// <param name="column">0 to 4 from the left.</param>
    public static bool HasInk(char character, int row, int column)
    {
        var index = Characters.IndexOf(char.ToLowerInvariant(character), StringComparison.Ordinal);
        return index >= 0 && (glyphs[index][row] >> (4 - column) & 1) == 1;
    }
}
