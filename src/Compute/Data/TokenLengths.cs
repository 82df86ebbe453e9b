using System.Globalization;

namespace Megatron.Compute.Data;

/// <summary>Lengths of the samples of a data set, as the line that is printed before training.</summary>
public static class TokenLengths
{
    /// <summary><c>Dataset Token Length: mean±std, min=, max=, size=</c>; the standard deviation is that of the whole set (divided by n).</summary>
    public static string Describe(ISampleSet samples)
    {
        if (samples.Count == 0) return "Dataset Token Length: size=0";
        double sum = 0, squares = 0;
        int min = int.MaxValue, max = 0;
        for (var i = 0; i < samples.Count; i++)
        {
            var length = samples.LengthOf(i);
            sum += length;
            min = Math.Min(min, length);
            max = Math.Max(max, length);
        }
        var mean = sum / samples.Count;
        for (var i = 0; i < samples.Count; i++) squares += (samples.LengthOf(i) - mean) * (samples.LengthOf(i) - mean);
        return string.Create(CultureInfo.InvariantCulture,
            $"Dataset Token Length: {mean:F6}±{Math.Sqrt(squares / samples.Count):F6}, min={min}, max={max}, size={samples.Count}");
    }
}
