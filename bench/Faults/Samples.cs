using System.Globalization;

namespace Megatron.Faults;

/// <summary>Measured values of one kind, in their order.</summary>
public sealed class Samples
{
    private readonly List<double> values = [];

    /// <summary>How many.</summary>
    public int Count => values.Count;

    /// <summary>The largest; NaN when there is none.</summary>
    public double Max => values.Count == 0 ? double.NaN : values.Max();

    /// <summary>The median.</summary>
    public double Median => Quantile(0.5);

    /// <summary>Takes one more.</summary>
    public void Add(double value) => values.Add(value);

    /// <summary>Takes the length of a time, in seconds.</summary>
    public void Add(TimeSpan time) => values.Add(time.TotalSeconds);

    /// <summary>The smallest value that the share <paramref name="q"/> of all does not exceed (nearest rank); NaN when there is none.</summary>
    public double Quantile(double q)
    {
        if (values.Count == 0) return double.NaN;
        var sorted = values.Order().ToList();
        return sorted[Math.Clamp((int)Math.Ceiling(q * sorted.Count) - 1, 0, sorted.Count - 1)];
    }

    /// <summary>Median and maximum as the table shows them.</summary>
    public string Format(string unit) => Count == 0
        ? "not measured"
        : string.Create(CultureInfo.InvariantCulture, $"median {Median:0.##} {unit}, max {Max:0.##} {unit}").Replace(" ,", ",", StringComparison.Ordinal).TrimEnd();
}
