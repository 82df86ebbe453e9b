using System.Globalization;

namespace Megatron.Compute.Data;

/// <summary>Lengths of the samples of a data set, as the line that is printed before training.</summary>
public static class TokenLengths
{
    /// <summary><c>Dataset Token Length: mean±std, min=, max=, size=</c>; the standard deviation is that of the whole set (divided by n).</summary>
    public static string Describe(IReadOnlyList<EncodedSample> samples)
    {
        if (samples.Count == 0) return "Dataset Token Length: size=0";
        double sum = 0, squares = 0;
        int min = int.MaxValue, max = 0;
        foreach (var sample in samples)
        {
            sum += sample.Length;
            min = Math.Min(min, sample.Length);
            max = Math.Max(max, sample.Length);
        }
        var mean = sum / samples.Count;
        foreach (var sample in samples) squares += (sample.Length - mean) * (sample.Length - mean);
        return string.Create(CultureInfo.InvariantCulture,
            $"Dataset Token Length: {mean:F6}±{Math.Sqrt(squares / samples.Count):F6}, min={min}, max={max}, size={samples.Count}");
    }
}
