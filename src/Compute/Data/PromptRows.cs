using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>The rows that a model is to answer: conversations that may end with a question or with an answer to compare with.</summary>
public static class PromptRows
{
    /// <summary>
    /// All rows of <c>--val_dataset</c>, else of <c>--dataset</c>; with <c>--load_data_args</c> and no validation set, the rows that the training
    /// run split off for validation. At most <c>--val_dataset_sample</c>.
    /// </summary>
    /// <param name="config">Data options.</param>
    /// <param name="report">Takes lines about rows left out.</param>
    /// <exception cref="ConfigException">DATA001 … DATA021: a file cannot be used.</exception>
    public static IReadOnlyList<Conversation> Read(TrainingConfig config, ICollection<string> report)
    {
        var seed = (ulong)(uint)(config.DataSeed ?? config.Seed);
        var parser = new RowParser(
            DatasetBuilder.ParseColumns(config.Columns), new SelfCognition(config.ModelName, config.ModelAuthor), seed, RowPurpose.Prompt);
        var isSplit = config.ValDataset.Count == 0 && config.LoadDataArgs && config.SplitDatasetRatio > 0;
        var rows = new List<Conversation>();
        var paths = config.ValDataset.Count > 0 ? config.ValDataset : config.Dataset;
        for (var i = 0; i < paths.Count; i++)
        {
            var spec = DatasetSpec.Parse(paths[i]);
            var all = ReadUsable(spec, parser, config.Strict, report);
            var shuffle = isSplit ? config.DatasetShuffle : config.ValDatasetShuffle;
            var split = RowSplit.Make(
                spec.Path, all.Count, spec.NumRows, isSplit ? config.SplitDatasetRatio : 1, shuffle, new DataRandom(seed, "rows", i));
            rows.AddRange(split.Validation.Select(row => all[row]));
        }
        return config.ValDatasetSample is { } most && most < rows.Count ? rows[..most] : rows;
    }

    private static List<Conversation> ReadUsable(DatasetSpec spec, RowParser parser, bool strict, ICollection<string> report)
    {
        var usable = new List<Conversation>();
        foreach (var path in spec.Files)
        {
            var notices = new DataNotices();
            var dropped = new DroppedRows(path, strict);
            using var rows = RowSources.Open(path);
            var count = 0;
            for (; rows.TryRead(out var row); count++)
            {
                if (parser.TryParse(row, notices, out var conversation, out var problem)) usable.Add(conversation);
                else dropped.Add(problem);
            }
            if (count == 0) throw new ConfigException("DATA008", $"{path} holds no rows; check the path.");
            dropped.Check(count);
            foreach (var line in dropped.Lines(count)) report.Add(line);
            foreach (var line in notices.Lines()) report.Add($"{path}: {line}");
        }
        return usable;
    }
}
