using System.IO.Hashing;
using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data.Prepared;

/// <summary>A stretch of consecutive rows, encoded and ready to be appended: made on any thread, appended in order.</summary>
internal sealed class EncodedChunk
{
    private readonly List<byte> _bytes = [];

    /// <summary>What happened to one row of the source.</summary>
    /// <param name="Row">The row without its text.</param>
    /// <param name="NumBytes">Bytes of its text.</param>
    /// <param name="NumSamples">Samples that it gave.</param>
    /// <param name="Unusable">Why it cannot be used at all.</param>
    /// <param name="Fate">Why it is usable but gave no sample.</param>
    /// <param name="IsMisfit">It does not fit the template.</param>
    /// <param name="Flags">What is worth counting.</param>
    public sealed record RowResult(SourceRow Row, int NumBytes, int NumSamples, RowProblem? Unusable, RowProblem? Fate, bool IsMisfit, RowFlags Flags);

    /// <summary>Rows in order.</summary>
    public List<RowResult> Rows { get; } = [];

    /// <summary>Samples in order; offsets count from the beginning of <see cref="Bytes"/>.</summary>
    public List<SampleEntry> Samples { get; } = [];

    /// <summary>The samples' bytes.</summary>
    public ReadOnlySpan<byte> Bytes => CollectionsMarshal.AsSpan(_bytes);

    /// <summary>Things worth telling.</summary>
    public DataNotices Notices { get; } = new();

    /// <summary>Tokens of the samples.</summary>
    public long NumTokens { get; private set; }

    /// <summary>A mistake that all rows share.</summary>
    public ConfigError? Fatal { get; private set; }

    /// <summary>XxHash128 of what the rows gave; independent of paths and lines.</summary>
    public byte[] Hash { get; private set; } = [];

    /// <summary>Encodes rows.</summary>
    /// <param name="rows">Consecutive rows of one source.</param>
    /// <param name="parser">Row → conversation.</param>
    /// <param name="encoder">Conversation → samples; null keeps the rows as they are (<c>lazy_tokenize</c>).</param>
    public static EncodedChunk Encode(IReadOnlyList<SourceRow> rows, RowParser parser, SampleEncoder? encoder)
    {
        var chunk = new EncodedChunk();
        foreach (var row in rows)
        {
            chunk.AddRow(row, parser, encoder);
            if (chunk.Fatal is not null) break;
        }
        chunk.Seal();
        return chunk;
    }

    private void AddRow(SourceRow row, RowParser parser, SampleEncoder? encoder)
    {
        var place = row with { Json = default };
        if (!parser.TryParse(row, Notices, out var conversation, out var problem))
        {
            Rows.Add(new RowResult(place, 0, 0, problem, Fate: null, IsMisfit: false, RowFlags.None));
            return;
        }
        if (encoder is null)
        {
            Samples.Add(new SampleEntry(_bytes.Count, TargetWeight: 1, row.Json.Length, IsWeighted: 0));
            _bytes.AddRange(row.Json.Span);
            Rows.Add(new RowResult(place, row.Json.Length, 1, Unusable: null, Fate: null, IsMisfit: false, RowFlags.None));
            return;
        }
        var encoded = encoder.Encode(conversation, row.Position);
        Fatal ??= encoded.Fatal;
        foreach (var sample in encoded.Samples)
        {
            Samples.Add(new SampleEntry(_bytes.Count, sample.TargetWeight, sample.Length, sample.LossWeights is null ? 0 : 1));
            SampleBytes.Write(sample, _bytes);
            NumTokens += sample.Length;
        }
        var flags = (encoded.WasCut ? RowFlags.WasCut : RowFlags.None) | (encoded.LosesRounds ? RowFlags.LosesRounds : RowFlags.None);
        Rows.Add(new RowResult(place, row.Json.Length, encoded.Samples.Length, Unusable: null, encoded.Problem ?? encoded.Deleted, encoded.Problem is not null, flags));
    }

    private void Seal()
    {
        var hash = new XxHash128();
        hash.Append(Bytes);
        foreach (var sample in Samples) hash.Append(MemoryMarshal.AsBytes([sample.Length, sample.IsWeighted]));
        foreach (var row in Rows)
            if (row.Unusable is null) hash.Append(MemoryMarshal.AsBytes([row.NumSamples]));
        Hash = hash.GetCurrentHash();
    }
}
