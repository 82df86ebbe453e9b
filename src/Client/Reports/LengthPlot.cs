using System.Globalization;
using Megatron.Client.Quickstart;
using Megatron.Compute.Data;

namespace Megatron.Client.Reports;

/// <summary>Sample lengths as a PNG histogram. Needs no font and no library of the system.</summary>
public static class LengthPlot
{
    private const int Width = 900, Height = 420, Left = 80, Right = 30, Top = 50, Bottom = 70, Scale = 2;

    private static readonly Rgb Ink = new(40, 40, 40), Bar = new(31, 119, 180);

    /// <summary>Draws the bins of the statistics.</summary>
    public static void Write(string path, DatasetStatistics statistics)
    {
        var canvas = new Canvas(Width, Height);
        var bins = statistics.Bins;
        var most = bins.Count == 0 ? 1 : Math.Max(1, bins.Max(bin => bin.Count));
        var step = (Width - Left - Right) / (double)Math.Max(1, bins.Count);
        for (var i = 0; i < bins.Count; i++)
        {
            var x = Left + (i + 0.5) * step;
            var height = (Height - Top - Bottom) * bins[i].Count / (double)most;
            // Thin lines side by side: one thick line would reach beyond its ends.
            for (var column = x - 0.4 * step; column <= x + 0.4 * step && height > 0; column++) canvas.Line(column, Height - Bottom, column, Height - Bottom - height, 1, Bar);
            if (i % 6 == 0) Label(canvas, x, bins[i].First);
        }
        canvas.Line(Left, Height - Bottom, Width - Right, Height - Bottom, 1.5, Ink);
        canvas.Line(Left, Top, Left, Height - Bottom, 1.5, Ink);
        var title = string.Create(CultureInfo.InvariantCulture, $"{statistics.NumSamples} samples by length");
        canvas.Text((Width - Canvas.TextWidth(title, Scale)) / 2, 16, title, Scale, Ink);
        canvas.Text((Width - Canvas.TextWidth("tokens", Scale)) / 2, Height - 30, "tokens", Scale, Ink);
        canvas.Text(8, Top - 8, most.ToString(CultureInfo.InvariantCulture), Scale, Ink);
        canvas.Save(path);
    }

    private static void Label(Canvas canvas, double x, int value)
    {
        var text = value.ToString(CultureInfo.InvariantCulture);
        canvas.Text((int)x - Canvas.TextWidth(text, Scale) / 2, Height - Bottom + 10, text, Scale, Ink);
    }
}
