namespace Megatron.Client.Quickstart;

/// <summary>A colour of a picture.</summary>
public readonly record struct Rgb(byte Red, byte Green, byte Blue);

/// <summary>
/// A white picture to draw lines and small text on. Drawn at three times its size and averaged, so that lines are smooth.
/// </summary>
/// <param name="width">Pixels.</param>
/// <param name="height">Pixels.</param>
public sealed class Canvas(int width, int height)
{
    private const int Fine = 3; // drawn pixels per pixel of the picture, in each direction

    private readonly Rgb[] drawn = [.. Enumerable.Repeat(new Rgb(255, 255, 255), width * height * Fine * Fine)];

    /// <summary>A straight line.</summary>
    /// <param name="thickness">Pixels.</param>
    public void Line(double x0, double y0, double x1, double y1, double thickness, Rgb colour)
    {
        var steps = (int)Math.Ceiling(Math.Max(Math.Abs(x1 - x0), Math.Abs(y1 - y0)) * Fine) + 1;
        var half = Math.Max(0, (int)(thickness * Fine) / 2);
        for (var step = 0; step <= steps; step++)
        {
            var (x, y) = ((x0 + (x1 - x0) * step / steps) * Fine, (y0 + (y1 - y0) * step / steps) * Fine);
            Fill((int)Math.Round(x) - half, (int)Math.Round(y) - half, 2 * half + 1, 2 * half + 1, colour);
        }
    }

    /// <summary>A line of text, its top left corner at (x, y); <see cref="TextWidth"/> wide.</summary>
    /// <param name="scale">Pixels per pixel of the font.</param>
    public void Text(int x, int y, string text, int scale, Rgb colour)
    {
        for (var i = 0; i < text.Length; i++)
            for (var row = 0; row < PixelFont.Height; row++)
                for (var column = 0; column < PixelFont.Advance - 1; column++)
                    if (PixelFont.HasInk(text[i], row, column))
                        Fill((x + (i * PixelFont.Advance + column) * scale) * Fine, (y + row * scale) * Fine, scale * Fine, scale * Fine, colour);
    }

    /// <summary>Pixels that a text takes.</summary>
    public static int TextWidth(string text, int scale) => text.Length * PixelFont.Advance * scale;

    /// <summary>Writes the picture.</summary>
    public void Save(string path)
    {
        var rgb = new byte[width * height * 3];
        for (var y = 0; y < height; y++)
            for (var x = 0; x < width; x++)
                Average(x, y).CopyTo(rgb, (y * width + x) * 3);
        PngFile.Write(path, width, height, rgb);
    }

    private byte[] Average(int x, int y)
    {
        var (red, green, blue) = (0, 0, 0);
        for (var dy = 0; dy < Fine; dy++)
            for (var dx = 0; dx < Fine; dx++)
            {
                var colour = drawn[(y * Fine + dy) * width * Fine + x * Fine + dx];
                (red, green, blue) = (red + colour.Red, green + colour.Green, blue + colour.Blue);
            }
        return [(byte)(red / (Fine * Fine)), (byte)(green / (Fine * Fine)), (byte)(blue / (Fine * Fine))];
    }

    private void Fill(int left, int top, int columns, int rows, Rgb colour)
    {
        for (var y = Math.Max(0, top); y < Math.Min(height * Fine, top + rows); y++)
            for (var x = Math.Max(0, left); x < Math.Min(width * Fine, left + columns); x++)
                drawn[y * width * Fine + x] = colour;
    }
}
