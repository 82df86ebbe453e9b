using System.Globalization;
using System.IO.Hashing;
using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Prepared;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data.Streaming;

/// <summary>What became of one row of a stream.</summary>
/// <param name="Samples">Its samples.</param>
/// <param name="Problem">Why it has none.</param>
/// <param name="Fatal">A mistake that all rows share.</param>
/// <param name="Notices">Things worth telling.</param>
internal sealed record StreamRow(EncodedSample[] Samples, RowProblem? Problem, ConfigError? Fatal, DataNotices Notices);

/// <summary>All that decides the batches of a stream: the same for every rank and attempt. Safe for several threads.</summary>
internal sealed class StreamPlan
{
    private readonly RowParser _parser;
    private readonly SampleEncoder _encoder;

    /// <param name="config">Data options.</param>
    /// <param name="settings">What is read.</param>
    /// <param name="parser">Row → conversation.</param>
    /// <param name="encoder">Conversation → samples.</param>
    /// <param name="encoding">Settings of the encoding, for the hash.</param>
    public StreamPlan(TrainingConfig config, StreamSettings settings, RowParser parser, SampleEncoder encoder, PreparedSettings encoding)
    {
        (Settings, _parser, _encoder) = (settings, parser, encoder);
        GlobalBatchSize = config.GlobalBatchSize;
        Strict = config.Strict;
        NumThreads = Math.Max(1, config.DatasetNumProc);
        PackingCapacity = config.Packing ? config.PackingLength ?? config.MaxLength : null;
        PackingStrategy = config.PackingStrategy == "sequential" ? PackingStrategy.Sequential : PackingStrategy.BinPack;
        Hash = HashOf(encoding);
    }

    public StreamSettings Settings { get; }
    public int GlobalBatchSize { get; }
    public bool Strict { get; }
    public int NumThreads { get; }

    /// <summary>Most tokens of a pack; null without packing.</summary>
    public int? PackingCapacity { get; }

    public PackingStrategy PackingStrategy { get; }

    /// <summary>Hash of the settings and of the files' names and sizes: a stream's content is not known before it is read.</summary>
    public ulong Hash { get; }

    /// <summary>Encodes one row.</summary>
    public StreamRow Encode(SourceRow row)
    {
        var notices = new DataNotices();
        if (!_parser.TryParse(row, notices, out var conversation, out var problem)) return new StreamRow([], problem, Fatal: null, notices);
        var encoded = _encoder.Encode(conversation, row.Position);
        return new StreamRow(encoded.Samples, encoded.Problem ?? encoded.Deleted, encoded.Fatal, notices);
    }

    private ulong HashOf(PreparedSettings encoding)
    {
        var hash = new XxHash64();
        void Add(FormattableString text) => hash.Append(Encoding.UTF8.GetBytes(text.ToString(CultureInfo.InvariantCulture) + "\n"));
        foreach (var (name, value) in encoding.Common) Add($"{name}={value}");
        Add($"{GlobalBatchSize} {PackingCapacity} {PackingStrategy} {Settings.ShuffleBufferSize} {Settings.Seed} {Settings.UntilAll} {string.Join(' ', Settings.Probabilities)}");
        foreach (var set in Settings.Sets)
        {
            Add($"set {set.NumRows}");
            foreach (var file in set.Files) Add($"{Path.GetFileName(file)} {new FileInfo(file).Length}");
        }
        return hash.GetCurrentHashAsUInt64();
    }
}
