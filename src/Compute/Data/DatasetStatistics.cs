using System.Globalization;

namespace Megatron.Compute.Data;

/// <summary>Lengths of samples in numbers: for a person who wants to choose <c>max_length</c> and <c>packing_length</c>.</summary>
/// <param name="NumSamples">Samples.</param>
/// <param name="NumTokens">Tokens of all samples.</param>
/// <param name="TargetWeight">Loss weights of all targets: the number of learned tokens where all weigh 1.</param>
/// <param name="Mean">Tokens of a sample.</param>
/// <param name="Quantiles">Share of the samples and the length that this share does not exceed.</param>
/// <param name="Bins">Histogram of lengths in equal steps.</param>
public sealed record DatasetStatistics(
    int NumSamples, long NumTokens, double TargetWeight, double Mean, IReadOnlyList<(double Share, int Length)> Quantiles, IReadOnlyList<LengthBin> Bins)
{
    private const int NumBins = 24;
    private static readonly double[] Shares = [0, 0.1, 0.5, 0.9, 0.99, 0.999, 1];

    /// <summary>Reads the lengths only.</summary>
    public static DatasetStatistics Of(ISampleSet samples)
    {
        var lengths = new int[samples.Count];
        var (tokens, targets) = (0L, 0.0);
        for (var i = 0; i < lengths.Length; i++)
        {
            lengths[i] = samples.LengthOf(i);
            tokens += lengths[i];
            targets += samples.TargetWeightOf(i);
        }
        Array.Sort(lengths);
        if (lengths.Length == 0) return new DatasetStatistics(0, 0, 0, 0, [], []);
        var quantiles = Array.ConvertAll(Shares, share => (share, lengths[(int)Math.Min(lengths.Length - 1, share * lengths.Length)]));
        return new DatasetStatistics(lengths.Length, tokens, targets, tokens / (double)lengths.Length, quantiles, Histogram(lengths));
    }

    /// <summary>As text, one line each: numbers, then the histogram.</summary>
    public IEnumerable<string> Lines()
    {
        if (NumSamples == 0)
        {
            yield return "no samples";
            yield break;
        }
        yield return string.Create(CultureInfo.InvariantCulture,
            $"{NumSamples} samples, {NumTokens} tokens, {TargetWeight:0.##} of them learned ({100 * TargetWeight / NumTokens:F1} %), mean length {Mean:F1}");
        yield return "length: " + string.Join(", ", Quantiles.Select(quantile => string.Create(CultureInfo.InvariantCulture, $"{quantile.Share switch
        {
            0 => "shortest",
            1 => "longest",
            var share => $"{100 * share:0.#} %",
        }} {quantile.Length}")));
        var most = Bins.Max(bin => bin.Count);
        var width = $"{Bins[^1].Last}".Length;
        foreach (var bin in Bins)
            yield return string.Create(CultureInfo.InvariantCulture, $"{bin.First.ToString().PadLeft(width)} - {bin.Last.ToString().PadLeft(width)} | {new string('#', (int)Math.Ceiling(50.0 * bin.Count / most)),-50} {bin.Count}");
    }

    private static LengthBin[] Histogram(int[] sorted)
    {
        var width = Math.Max(1, (sorted[^1] + NumBins) / NumBins);
        var bins = new LengthBin[sorted[^1] / width + 1];
        for (var i = 0; i < bins.Length; i++) bins[i] = new LengthBin(i * width, (i + 1) * width - 1, 0);
        foreach (var length in sorted) bins[length / width] = bins[length / width] with { Count = bins[length / width].Count + 1 };
        return bins;
    }
}

/// <summary>Samples whose length lies in a stretch.</summary>
/// <param name="First">Least length.</param>
/// <param name="Last">Greatest length.</param>
/// <param name="Count">Samples.</param>
public sealed record LengthBin(int First, int Last, int Count);
