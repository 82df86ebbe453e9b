using System.Globalization;
using System.Text;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>One encoded sample as text, for checking template and mask by eye before training.</summary>
public static class SamplePrinter
{
    /// <summary>
    /// Four blocks: <c>[INPUT_IDS]</c>, <c>[INPUT]</c>, <c>[LABELS_IDS]</c>, <c>[LABELS]</c>. Labels are those of the sample, already shifted by
    /// one; a masked stretch of n is written <c>[-100 * n]</c> in the text and in full in the ids.
    /// </summary>
    public static string Print(EncodedSample sample, ITokenizer tokenizer)
    {
        var text = new StringBuilder();
        text.Append("[INPUT_IDS] ").Append(Ids(sample.TokenIds)).Append('\n');
        text.Append("[INPUT] ").Append(tokenizer.Decode(sample.TokenIds, skipSpecialTokens: false)).Append('\n');
        text.Append("[LABELS_IDS] ").Append(Ids(sample.Labels)).Append('\n');
        text.Append("[LABELS] ").Append(LabelText(sample.Labels, tokenizer));
        return text.ToString();
    }

    /// <summary>The labels decoded, masked stretches as <c>[-100 * n]</c>.</summary>
    public static string LabelText(ReadOnlySpan<int> labels, ITokenizer tokenizer)
    {
        var text = new StringBuilder();
        while (!labels.IsEmpty)
        {
            var masked = labels.IndexOfAnyExcept(MicroBatch.IgnoreIndex);
            if (masked < 0) masked = labels.Length;
            if (masked > 0) text.Append(CultureInfo.InvariantCulture, $"[-100 * {masked}]");
            labels = labels[masked..];
            var learned = labels.IndexOf(MicroBatch.IgnoreIndex);
            if (learned < 0) learned = labels.Length;
            if (learned > 0) text.Append(tokenizer.Decode(labels[..learned], skipSpecialTokens: false));
            labels = labels[learned..];
        }
        return text.ToString();
    }

    private static string Ids(int[] ids) => "[" + string.Join(", ", ids.Select(id => id.ToString(CultureInfo.InvariantCulture))) + "]";
}
