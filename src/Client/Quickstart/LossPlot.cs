using System.Globalization;
using System.Text.Json;

namespace Megatron.Client.Quickstart;

/// <summary>One curve of a plot.</summary>
/// <param name="Name">For the legend.</param>
/// <param name="Points">Iteration and loss, in the order of the iterations.</param>
public sealed record LossCurve(string Name, IReadOnlyList<(double Iteration, double Loss)> Points)
{
    /// <summary>The losses in the <c>logging.jsonl</c> of a run's folder.</summary>
    public static LossCurve Read(string name, string runFolder)
    {
        var points = new List<(double, double)>();
        foreach (var line in File.ReadLines(Path.Combine(runFolder, "logging.jsonl")))
        {
            using var row = JsonDocument.Parse(line);
            if (!row.RootElement.TryGetProperty("lm loss", out var loss) || loss.ValueKind != JsonValueKind.Number) continue;
            var step = row.RootElement.GetProperty("global_step/max_steps").GetString() ?? "";
            points.Add((double.Parse(step.Split('/')[0], CultureInfo.InvariantCulture), loss.GetDouble()));
        }
        return new LossCurve(name, points);
    }
}

/// <summary>Loss over iterations as a PNG picture. Needs no font and no library of the system.</summary>
public static class LossPlot
{
    private const int Width = 900, Height = 500, Left = 80, Right = 30, Top = 50, Bottom = 70, Scale = 2;

    private static readonly Rgb Ink = new(40, 40, 40), Grid = new(225, 225, 225);
    private static readonly Rgb[] Colours = [new(31, 119, 180), new(214, 39, 40), new(44, 160, 44), new(148, 103, 189)];

    /// <summary>Draws the curves into one frame with a common scale.</summary>
    public static void Write(string path, string title, IReadOnlyList<LossCurve> curves)
    {
        var points = curves.SelectMany(curve => curve.Points).DefaultIfEmpty((1, 1)).ToList();
        var canvas = new Canvas(Width, Height);
        var x = new Axis(0, points.Max(point => point.Iteration), Left, Width - Right);
        var y = new Axis(0, points.Max(point => point.Loss), Height - Bottom, Top);
        DrawFrame(canvas, title, x, y);
        for (var i = 0; i < curves.Count; i++) DrawCurve(canvas, curves[i], x, y, i);
        canvas.Save(path);
    }

    private static void DrawFrame(Canvas canvas, string title, Axis x, Axis y)
    {
        foreach (var value in y.Ticks())
        {
            canvas.Line(Left, y.At(value), Width - Right, y.At(value), 1, Grid);
            var label = Number(value);
            canvas.Text(Left - 10 - Canvas.TextWidth(label, Scale), (int)y.At(value) - 7, label, Scale, Ink);
        }
        foreach (var value in x.Ticks())
        {
            canvas.Line(x.At(value), Top, x.At(value), Height - Bottom, 1, Grid);
            var label = Number(value);
            canvas.Text((int)x.At(value) - Canvas.TextWidth(label, Scale) / 2, Height - Bottom + 10, label, Scale, Ink);
        }
        canvas.Line(Left, Height - Bottom, Width - Right, Height - Bottom, 1.5, Ink);
        canvas.Line(Left, Top, Left, Height - Bottom, 1.5, Ink);
        canvas.Text((Width - Canvas.TextWidth(title, Scale)) / 2, 16, title, Scale, Ink);
        canvas.Text((Left + Width - Right - Canvas.TextWidth("iteration", Scale)) / 2, Height - 30, "iteration", Scale, Ink);
        canvas.Text(12, Top - 22, "loss", Scale, Ink);
    }

    private static void DrawCurve(Canvas canvas, LossCurve curve, Axis x, Axis y, int index)
    {
        var colour = Colours[index % Colours.Length];
        for (var i = 1; i < curve.Points.Count; i++)
        {
            var (from, to) = (curve.Points[i - 1], curve.Points[i]);
            canvas.Line(x.At(from.Iteration), y.At(from.Loss), x.At(to.Iteration), y.At(to.Loss), 2, colour);
        }
        var (left, top) = (Width - Right - 40 - Canvas.TextWidth(curve.Name, Scale), Top + 12 + 24 * index);
        canvas.Line(left, top + 7, left + 24, top + 7, 3, colour);
        canvas.Text(left + 34, top, curve.Name, Scale, Ink);
    }

    private static string Number(double value) => value.ToString("0.###", CultureInfo.InvariantCulture);

    /// <summary>Values of an axis and where they lie in the picture.</summary>
    private sealed record Axis(double Least, double Most, double Start, double End)
    {
        public double At(double value) => Start + (value - Least) / (Most - Least) * (End - Start);

        /// <summary>Up to ten round values: steps of 1, 2 or 5 times a power of ten.</summary>
        public IEnumerable<double> Ticks()
        {
            var magnitude = Math.Pow(10, Math.Floor(Math.Log10((Most - Least) / 10)));
            var step = new[] { 1.0, 2, 5, 10 }.Select(factor => factor * magnitude).First(size => (Most - Least) / size <= 10);
            for (var i = 0; Least + i * step <= Most * (1 + 1e-9); i++) yield return Least + i * step;
        }
    }
}
