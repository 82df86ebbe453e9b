using System.Collections;
using System.IO.Hashing;
using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Prepared;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data;

/// <summary>
/// The rows of a source, each encoded when it is used (<c>lazy_tokenize</c>). A row that gives no sample is replaced by the next one that does, so
/// that the number of samples is known without encoding. Lengths are not known before use, so these samples cannot be packed.
/// </summary>
/// <param name="source">Rows as they were.</param>
/// <param name="parser">Row → conversation.</param>
/// <param name="encoder">Conversation → sample.</param>
/// <param name="settings">What the encoding depends on, for the hash.</param>
internal sealed class LazySamples(PreparedSource source, RowParser parser, SampleEncoder encoder, PreparedSettings settings) : ISampleSet
{
    private const int MaxReplacements = 1000;

    /// <inheritdoc/>
    public int Count => source.Facts.NumRows;

    /// <inheritdoc/>
    /// <exception cref="ConfigException">DATA013: a thousand rows in a row give no sample; DATA022.</exception>
    public EncodedSample this[int index]
    {
        get
        {
            for (var tried = 0; tried <= Math.Min(MaxReplacements, Count - 1); tried++)
            {
                var row = (index + tried) % Count;
                var place = source.Row(row);
                var text = new SourceRow(source.Facts.Source, place.Number, place.Line, source.TextOf(row).ToArray(), Problem: null);
                if (!parser.TryParse(text, new DataNotices(), out var conversation, out _)) continue;
                var encoded = encoder.Encode(conversation, text.Position);
                if (encoded.Fatal is { } fatal) throw new ConfigException([fatal]);
                if (encoded.Samples.Length > 0) return encoded.Samples[0];
            }
            throw new ConfigException("DATA013", $"{source.Facts.Source}: none of {Math.Min(MaxReplacements + 1, Count)} rows from row {index} on gives a sample, because they are too " +
                "long, have nothing to learn or do not fit the template; prepare the data without lazy_tokenize to see the reasons.");
        }
    }

    /// <inheritdoc/>
    public int LengthOf(int index) => this[index].Length;

    /// <inheritdoc/>
    public double TargetWeightOf(int index) => this[index].TargetWeight;

    /// <inheritdoc/>
    public void AppendTo(XxHash64 hash)
    {
        source.AppendTo(hash);
        foreach (var (name, value) in settings.Common) hash.Append(Encoding.UTF8.GetBytes($"{name}={value}\n"));
    }

    /// <inheritdoc/>
    public IEnumerator<EncodedSample> GetEnumerator()
    {
        for (var i = 0; i < Count; i++) yield return this[i];
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}
