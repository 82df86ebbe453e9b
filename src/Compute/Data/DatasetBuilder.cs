using System.Globalization;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Prepared;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Data.Streaming;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>
/// Data files and settings → the prepared data of a run: prepare every file (or find it prepared), split and sample each data set (before mixing),
/// mix, shuffle, plan. The result depends on the files, the settings and <c>data_seed</c> only.
/// </summary>
public sealed class DatasetBuilder
{
    private readonly TrainingConfig _config;
    private readonly ChatTemplate _template;
    private readonly ulong _seed;
    private readonly RowParser _parser;
    private readonly SampleEncoder _encoder;
    private readonly PreparedStore _store;
    private readonly PreparedSettings _encoding;
    private readonly IReadOnlyList<string> _trainSets;
    private readonly List<string> _report = [];

    private DatasetBuilder(TrainingConfig config, ITokenizer tokenizer, ChatTemplate template, int modelVocab)
    {
        template = template.WithAgentTemplate(config.AgentTemplate);
        (_config, _template) = (config, template);
        if (config.Dataset.Count == 0) throw new ConfigException("DATA021", "no training data is given; name at least one file with --dataset.");
        _trainSets = config.Streaming ? [] : config.Dataset;
        _seed = SeedOf(config);
        _parser = new RowParser(ParseColumns(config.Columns), new SelfCognition(config.ModelName, config.ModelAuthor), _seed, RowPurpose.Training);
        var options = new RenderOptions(config.System, LossScales.Parse(config.LossScale));
        _encoder = new SampleEncoder(
            new ConversationEncoder(tokenizer, template, options, config.DateString), config.MaxLength ?? int.MaxValue, Truncation(config), modelVocab);
        _store = new PreparedStore(config, tokenizer, template, _parser, _encoder, modelVocab);
        _encoding = new PreparedSettings(config with { LazyTokenize = false }, tokenizer, template, modelVocab);
    }

    /// <summary>Prepares the data of a training run.</summary>
    /// <param name="config">Data, template and batch options. <c>pt</c> comes with <c>use_chat_template</c> false and <c>loss_scale</c> all;
    /// <c>max_length</c> is filled from the model where the user gave none (null = no limit).</param>
    /// <param name="tokenizer">The model's tokenizer.</param>
    /// <param name="template">Chat template, or the plain-text template of pre-training; unbound.</param>
    /// <param name="modelVocab">Rows of the embedding: token ids must lie below.</param>
    /// <param name="progress">Gets lines while files are being prepared; null when nobody reads them.</param>
    /// <param name="cancellation">Ends the preparation; what is done is kept for the next start.</param>
    /// <returns>The data; the caller disposes them.</returns>
    /// <exception cref="ConfigException">DATA001 … DATA031: what is wrong with which file, row or option.</exception>
    public static TrainData Build(
        TrainingConfig config, ITokenizer tokenizer, ChatTemplate template, int modelVocab, Action<string>? progress = null, CancellationToken cancellation = default)
    {
        var builder = new DatasetBuilder(config, tokenizer, template, modelVocab);
        var sources = new PreparedSources();
        try
        {
            return builder.Build(sources, progress ?? (_ => { }), cancellation);
        }
        catch
        {
            sources.Dispose();
            throw;
        }
    }

    /// <summary>The seed of every decision about data.</summary>
    internal static ulong SeedOf(TrainingConfig config) => (ulong)(uint)(config.DataSeed ?? config.Seed);

    private TrainData Build(PreparedSources sources, Action<string> progress, CancellationToken cancellation)
    {
        if (_config.Streaming) return BuildStream(sources, progress, cancellation);
        var sets = OpenAll(sources, progress, cancellation);
        var (train, validation) = ChooseRows(sets, sources);
        if (_config.DatasetShuffle) new DataRandom(_seed, "shuffle train", 0).Shuffle(train.AsSpan());
        if (_config.ValDatasetShuffle) new DataRandom(_seed, "shuffle validation", 0).Shuffle(validation.AsSpan());

        var chosen = new ChosenRows(sources.Items, _config, _template.Name);
        chosen.Report(train.Concat(validation), _report);
        IReadOnlyList<ISampleSet> samples = _config.LazyTokenize
            ? [.. sources.Items.Select(source => new LazySamples(source, _parser, _encoder, _encoding))]
            : sources.Items;
        var trainSamples = chosen.SamplesOf(train);
        var validationSamples = chosen.SamplesOf(validation);
        if (trainSamples.Length == 0)
            throw new ConfigException("DATA021", $"no training sample is left of {train.Length} rows; see the lines above for the reasons.");
        _report.Add(string.Create(CultureInfo.InvariantCulture, $"train samples: {trainSamples.Length}, validation samples: {validationSamples.Length}"));
        var split = _config.ValDataset.Count == 0 ? validation : [];
        return new TrainData(_config, _seed, new MixedSamples(samples, trainSamples), new MixedSamples(samples, validationSamples), _report)
        {
            Sources = sources,
            ReadValidationSplit = () => RowText.Read(sources.Items, split, _parser),
        };
    }

    /// <summary>Training data that are read while training; validation data are prepared as ever.</summary>
    private TrainData BuildStream(PreparedSources sources, Action<string> progress, CancellationToken cancellation)
    {
        var settings = new StreamSettings(
            [.. _config.Dataset.Select(DatasetSpec.Parse)], _config.InterleaveProb, _config.StoppingStrategy == "all_exhausted",
            _config.DatasetShuffle ? _config.ShuffleBufferSize : 1, _seed);
        foreach (var file in settings.Sets.SelectMany(set => set.Files)) RowSources.Open(file).Dispose();
        var stream = new StreamPlan(_config, settings, _parser, _encoder, _encoding);
        if (_config.ValDataset.Count == 0) return new TrainData(_config, stream, new MemorySamples([]), _report) { Sources = sources };
        var sets = OpenAll(sources, progress, cancellation);
        var (_, validation) = ChooseRows(sets, sources);
        if (_config.ValDatasetShuffle) new DataRandom(_seed, "shuffle validation", 0).Shuffle(validation.AsSpan());
        var chosen = new ChosenRows(sources.Items, _config, _template.Name);
        chosen.Report(validation, _report);
        return new TrainData(_config, stream, new MixedSamples(sources.Items, chosen.SamplesOf(validation)), _report) { Sources = sources };
    }

    /// <summary>A data set as the user named it, and where its rows are.</summary>
    private sealed record OpenSet(DatasetSpec Spec, int FirstSource, int NumRows);

    private List<OpenSet> OpenAll(PreparedSources sources, Action<string> progress, CancellationToken cancellation)
    {
        var errors = new List<ConfigError>();
        var sets = new List<OpenSet>();
        foreach (var text in _trainSets.Concat(_config.ValDataset))
        {
            try
            {
                sets.Add(OpenSetOf(DatasetSpec.Parse(text), sources, progress, cancellation));
            }
            catch (ConfigException e)
            {
                errors.AddRange(e.Errors);
            }
        }
        return errors.Count == 0 ? sets : throw new ConfigException(errors);
    }

    private OpenSet OpenSetOf(DatasetSpec spec, PreparedSources sources, Action<string> progress, CancellationToken cancellation)
    {
        var first = sources.Items.Count;
        var numRows = 0;
        foreach (var path in spec.Files)
        {
            var source = _store.Open(path, progress, cancellation);
            sources.Items.Add(source);
            numRows += source.Facts.NumRows;
            var dropped = new DroppedRows(path, _config.Strict);
            dropped.AddAll(source.Facts.Dropped);
            _report.AddRange(dropped.Lines(source.Facts.NumSourceRows));
            _report.AddRange(source.Facts.Notices.Select(notice => $"{path}: {notice.Key} ({notice.Value} ×)"));
        }
        return new OpenSet(spec, first, numRows);
    }

    private (RowRef[] Train, RowRef[] Validation) ChooseRows(List<OpenSet> sets, PreparedSources sources)
    {
        var train = new List<RowRef[]>();
        var validation = new List<RowRef[]>();
        for (var i = 0; i < sets.Count; i++)
        {
            var (spec, numRows) = (sets[i].Spec, sets[i].NumRows);
            var isTrain = i < _trainSets.Count;
            var ratio = !isTrain ? 1 : _config.ValDataset.Count > 0 ? 0 : _config.SplitDatasetRatio;
            var shuffle = isTrain ? _config.DatasetShuffle : _config.ValDatasetShuffle;
            var split = RowSplit.Make(spec.Path, numRows, spec.NumRows, ratio, shuffle, new DataRandom(_seed, "rows", i));
            if (isTrain) train.Add(Locate(split.Train, sets[i], sources));
            validation.Add(Locate(split.Validation, sets[i], sources));
            if (spec.NumRows > numRows) _report.Add($"{spec.Path}: {spec.NumRows} rows asked for and {numRows} there: rows repeat");
            _report.Add($"{spec.Path}: {split.Train.Length} rows for training, {split.Validation.Length} for validation");
        }
        return (MixTrain(train), RowMix.Concatenate(validation));
    }

    private RowRef[] MixTrain(List<RowRef[]> sets)
    {
        if (_config.InterleaveProb.Count == 0) return RowMix.Concatenate(sets);
        var mixed = RowMix.Interleave(sets, _config.InterleaveProb, _config.StoppingStrategy == "all_exhausted", new DataRandom(_seed, "interleave", 0));
        _report.Add($"interleaved by probability until {(_config.StoppingStrategy == "all_exhausted" ? "every" : "the first")} set was used up: {mixed.Length} rows");
        return mixed;
    }

    /// <summary>Rows numbered over all files of a set → rows of files.</summary>
    private static RowRef[] Locate(int[] rows, OpenSet set, PreparedSources sources)
    {
        var begins = new List<int>();
        var total = 0;
        for (var i = 0; i < set.Spec.Files.Count; i++)
        {
            begins.Add(total);
            total += sources.Items[set.FirstSource + i].Facts.NumRows;
        }
        return Array.ConvertAll(rows, row =>
        {
            var at = begins.BinarySearch(row);
            if (at < 0) at = ~at - 1;
            while (at + 1 < begins.Count && begins[at + 1] == begins[at]) at++; // files without usable rows
            return new RowRef(set.FirstSource + at, row - begins[at]);
        });
    }

    private static TruncationStrategy Truncation(TrainingConfig config) => config.TruncationStrategy switch
    {
        "delete" => TruncationStrategy.Delete,
        "left" => TruncationStrategy.Left,
        "right" => TruncationStrategy.Right,
        "split" when !config.UseChatTemplate => TruncationStrategy.Split,
        "split" => throw new ConfigException("DATA010", "truncation_strategy = split cuts plain text up and is for pre-training only; choose delete, left or right."),
        var other => throw new ConfigException("DATA010", $"truncation_strategy = {other} is not known; choose delete, left, right or split."),
    };

    internal static Dictionary<string, string> ParseColumns(string? json)
    {
        try
        {
            var renames = json is null ? null : JsonSerializer.Deserialize<Dictionary<string, string>>(json);
            return new Dictionary<string, string>(renames ?? [], StringComparer.OrdinalIgnoreCase);
        }
        catch (Exception e) when (e is JsonException or ArgumentException)
        {
            throw new ConfigException("DATA010", $"columns = {json} is no JSON object of texts with different names; write {{\"source\": \"target\"}}.");
        }
    }
}
