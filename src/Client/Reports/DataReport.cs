using System.Globalization;
using System.Net;
using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;

namespace Megatron.Client.Reports;

/// <summary>A report on prepared data as one HTML page, and the histogram of lengths as a PNG picture beside it.</summary>
public static class DataReport
{
    private const string Style = "body{font-family:sans-serif;margin:2em;max-width:70em}pre{background:#f4f4f4;padding:.6em;white-space:pre-wrap}"
        + ".learned{background:#c9f0c9}.masked{color:#666}table{border-collapse:collapse}td{padding:.1em .8em;border-bottom:1px solid #ddd}";

    /// <summary>Writes both files.</summary>
    /// <param name="path">The HTML file.</param>
    /// <param name="data">Prepared data.</param>
    /// <param name="tokenizer">Decodes the samples that are shown.</param>
    /// <param name="numSamples">Samples that are shown.</param>
    /// <exception cref="ConfigException">DISK001: a file cannot be written.</exception>
    public static void Write(string path, TrainData data, ITokenizer tokenizer, int numSamples)
    {
        var statistics = DatasetStatistics.Of(data.TrainSamples);
        var picture = Path.ChangeExtension(path, ".png");
        try
        {
            if (Path.GetDirectoryName(Path.GetFullPath(path)) is { } folder) Directory.CreateDirectory(folder);
            LengthPlot.Write(picture, statistics);
            File.WriteAllText(path, Page(data, tokenizer, numSamples, statistics, Path.GetFileName(picture)));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DISK001", $"The report {path} cannot be written ({e.Message}); give another --report_path.");
        }
    }

    private static string Page(TrainData data, ITokenizer tokenizer, int numSamples, DatasetStatistics statistics, string picture)
    {
        var html = new StringBuilder();
        html.Append(CultureInfo.InvariantCulture, $"<!doctype html><html><head><meta charset=\"utf-8\"><title>data report</title><style>{Style}</style></head><body><h1>Data report</h1>\n");
        html.Append("<h2>Rows, samples, length of training</h2><pre>");
        foreach (var line in data.Report) html.Append(WebUtility.HtmlEncode(line)).Append('\n');
        html.Append("</pre>\n<h2>Lengths</h2><pre>");
        foreach (var line in statistics.Lines()) html.Append(WebUtility.HtmlEncode(line)).Append('\n');
        html.Append(CultureInfo.InvariantCulture, $"</pre><p><img src=\"{WebUtility.HtmlEncode(picture)}\" alt=\"histogram of sample lengths\"></p>\n");
        html.Append("<h2>Samples</h2><p><span class=\"learned\">learned</span>, <span class=\"masked\">not learned</span></p>\n");
        for (var i = 0; i < Math.Min(numSamples, data.TrainSamples.Count); i++) AppendSample(html, i, data.TrainSamples[i], tokenizer);
        return html.Append("</body></html>\n").ToString();
    }

    // A token is shown as learned when the position before it has it as its target.
    private static void AppendSample(StringBuilder html, int index, EncodedSample sample, ITokenizer tokenizer)
    {
        html.Append(CultureInfo.InvariantCulture, $"<h3>Sample {index}: {sample.Length} tokens, {sample.NumTargetTokens} learned</h3><pre>");
        for (var begin = 0; begin < sample.Length;)
        {
            var isLearned = IsLearned(sample, begin);
            var end = begin + 1;
            while (end < sample.Length && IsLearned(sample, end) == isLearned) end++;
            var text = tokenizer.Decode(sample.TokenIds.AsSpan(begin..end), skipSpecialTokens: false);
            html.Append(CultureInfo.InvariantCulture, $"<span class=\"{(isLearned ? "learned" : "masked")}\">{WebUtility.HtmlEncode(text)}</span>");
            begin = end;
        }
        html.Append("</pre>\n");
    }

    private static bool IsLearned(EncodedSample sample, int position) => position > 0 && sample.Labels[position - 1] != MicroBatch.IgnoreIndex;
}
