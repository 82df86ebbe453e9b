using System.Collections;
using System.IO.Hashing;
using System.Text;

namespace Megatron.Compute.Data.Prepared;

/// <summary>
/// The prepared form of one source file, mapped into memory: samples by number, and which of them each usable row gave. Shared by all readers of a
/// node through the page cache. Reading is safe from several threads.
/// </summary>
internal sealed class PreparedSource : ISampleSet, IDisposable
{
    private readonly MappedFile _data;
    private readonly MappedFile _samples;
    private readonly MappedFile _rows;

    private PreparedSource(string folder, PreparedFacts facts)
    {
        Facts = facts;
        _data = new MappedFile(Path.Combine(folder, PreparedFiles.Data));
        _samples = new MappedFile(Path.Combine(folder, PreparedFiles.Samples));
        _rows = new MappedFile(Path.Combine(folder, PreparedFiles.Rows));
    }

    /// <summary>Counts, reasons, notices.</summary>
    public PreparedFacts Facts { get; }

    /// <inheritdoc/>
    public int Count => Facts.NumSamples;

    /// <inheritdoc/>
    public EncodedSample this[int index]
    {
        get
        {
            var entry = _samples.Entry<SampleEntry>(index);
            var isWeighted = entry.IsWeighted != 0;
            return SampleBytes.Read(_data.Slice(entry.Offset, SampleBytes.SizeOf(entry.Length, isWeighted)), entry.Length, isWeighted);
        }
    }

    /// <summary>Opens a complete prepared source; null when there is none in the folder.</summary>
    public static PreparedSource? TryOpen(string folder)
    {
        if (PreparedFiles.ReadFacts(Path.Combine(folder, PreparedFiles.Facts)) is not { } facts) return null;
        return new PreparedSource(folder, facts);
    }

    /// <inheritdoc/>
    public int LengthOf(int index) => _samples.Entry<SampleEntry>(index).Length;

    /// <inheritdoc/>
    public double TargetWeightOf(int index) => _samples.Entry<SampleEntry>(index).TargetWeight;

    /// <summary>Usable row <paramref name="row"/>.</summary>
    public RowEntry Row(int row) => _rows.Entry<RowEntry>(row);

    /// <summary>The samples of usable row <paramref name="row"/>.</summary>
    public Range SamplesOf(int row) => Row(row).FirstSample..(row + 1 < Facts.NumRows ? Row(row + 1).FirstSample : Facts.NumSamples);

    /// <summary>The JSON text of a row that is kept as it was (<c>lazy_tokenize</c>), where each row is one sample.</summary>
    public ReadOnlySpan<byte> TextOf(int row)
    {
        var entry = _samples.Entry<SampleEntry>(row);
        return _data.Slice(entry.Offset, entry.Length);
    }

    /// <inheritdoc/>
    public void AppendTo(XxHash64 hash) => hash.Append(Encoding.ASCII.GetBytes(Facts.ContentHash));

    /// <inheritdoc/>
    public IEnumerator<EncodedSample> GetEnumerator()
    {
        for (var i = 0; i < Count; i++) yield return this[i];
    }

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    /// <inheritdoc/>
    public void Dispose()
    {
        _data.Dispose();
        _samples.Dispose();
        _rows.Dispose();
    }
}
