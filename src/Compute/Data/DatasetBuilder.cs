using System.Globalization;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>
/// Data files and settings → the prepared data of a run: open and check every file, split and sample each (before mixing), concatenate, shuffle,
/// encode, plan. The result depends on the files, the settings and <c>data_seed</c> only.
/// </summary>
public static class DatasetBuilder
{
    /// <summary>Prepares the data of a training run.</summary>
    /// <param name="config">Data, template and batch options. <c>pt</c> comes with <c>use_chat_template</c> false and <c>loss_scale</c> all;
    /// <c>max_length</c> is filled from the model where the user gave none (null = no limit).</param>
    /// <param name="tokenizer">The model's tokenizer.</param>
    /// <param name="template">Chat template, or the plain-text template of pre-training; unbound.</param>
    /// <param name="modelVocab">Rows of the embedding: token ids must lie below.</param>
    /// <exception cref="ConfigException">DATA001 … DATA024: what is wrong with which file, row or option.</exception>
    public static TrainData Build(TrainingConfig config, ITokenizer tokenizer, ChatTemplate template, int modelVocab)
    {
        var seed = (ulong)(uint)(config.DataSeed ?? config.Seed);
        var report = new List<string>();
        using var files = new OpenFiles();
        var parser = new RowParser(ParseColumns(config.Columns), new SelfCognition(config.ModelName, config.ModelAuthor), seed, RowPurpose.Training);
        var numTrainSets = OpenAll(config, parser, files, report);
        var (train, validation) = ChooseRows(config, files, numTrainSets, seed, report);
        if (config.DatasetShuffle) new DataRandom(seed, "shuffle train", 0).Shuffle(train.AsSpan());
        if (config.ValDatasetShuffle) new DataRandom(seed, "shuffle validation", 0).Shuffle(validation.AsSpan());

        var options = new RenderOptions(config.System, LossScales.Parse(config.LossScale));
        var encoder = new SampleEncoder(new ConversationEncoder(tokenizer, template, options, config.DateString), config.MaxLength ?? int.MaxValue,
            Truncation(config), modelVocab);
        var rows = new RowEncoding(files.Items, encoder, config, template);
        rows.EncodeAll([.. train, .. validation], report);
        var trainSamples = rows.SamplesOf(train);
        var validationSamples = rows.SamplesOf(validation);
        if (trainSamples.Count == 0)
            throw new ConfigException("DATA021", $"no training sample is left of {train.Length} rows; see the lines above for the reasons.");

        report.Add(string.Create(CultureInfo.InvariantCulture, $"train samples: {trainSamples.Count}, validation samples: {validationSamples.Count}"));
        report.Add(TokenLengths.Describe(trainSamples));
        var split = config.ValDataset.Count == 0 ? Array.ConvertAll(validation, row => files.Items[row.File].Read(row.Row)) : [];
        return new TrainData(config, seed, new MemorySamples(trainSamples), new MemorySamples(validationSamples), split, report);
    }

    private static int OpenAll(TrainingConfig config, RowParser parser, OpenFiles files, List<string> report)
    {
        if (config.Dataset.Count == 0) throw new ConfigException("DATA021", "no training data is given; name at least one file with --dataset.");
        var errors = new List<ConfigError>();
        foreach (var text in config.Dataset.Concat(config.ValDataset))
        {
            try
            {
                files.Items.Add(DatasetFile.Open(DatasetSpec.Parse(text), parser, config.Strict, report));
            }
            catch (ConfigException e)
            {
                errors.AddRange(e.Errors);
            }
        }
        return errors.Count == 0 ? config.Dataset.Count : throw new ConfigException(errors);
    }

    private static (RowRef[] Train, RowRef[] Validation) ChooseRows(TrainingConfig config, OpenFiles files, int numTrainSets, ulong seed, List<string> report)
    {
        var train = new List<RowRef>();
        var validation = new List<RowRef>();
        for (var i = 0; i < files.Items.Count; i++)
        {
            var file = files.Items[i];
            var isTrain = i < numTrainSets;
            var ratio = !isTrain ? 1 : config.ValDataset.Count > 0 ? 0 : config.SplitDatasetRatio;
            var shuffle = isTrain ? config.DatasetShuffle : config.ValDatasetShuffle;
            var split = RowSplit.Make(file.Spec.Path, file.Count, file.Spec.NumRows, ratio, shuffle, new DataRandom(seed, "rows", i));
            train.AddRange(split.Train.Select(row => new RowRef(i, row)));
            validation.AddRange(split.Validation.Select(row => new RowRef(i, row)));
            if (file.Spec.NumRows > file.Count)
                report.Add($"{file.Spec.Path}: {file.Spec.NumRows} rows asked for and {file.Count} there: rows repeat");
            report.Add($"{file.Spec.Path}: {split.Train.Length} rows for training, {split.Validation.Length} for validation");
        }
        return ([.. train], [.. validation]);
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

    private sealed class OpenFiles : IDisposable
    {
        public List<DatasetFile> Items { get; } = [];

        public void Dispose()
        {
            foreach (var file in Items) file.Dispose();
        }
    }
}
