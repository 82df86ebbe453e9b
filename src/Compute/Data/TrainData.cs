using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Streaming;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>
/// The prepared data of a run: encoded samples, the plan of the global batches, and what to tell the user. The same on every rank that prepares
/// it from the same files and settings; <see cref="PlannedBatchSource.PlanHash"/> proves it.
/// </summary>
public sealed class TrainData : IDisposable
{
    private static readonly JsonWriterOptions RowOptions = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly int _globalBatchSize;
    private readonly BatchPlan? _trainPlan;
    private readonly StreamPlan? _stream;
    private readonly PackPlan? _trainPacks;
    private readonly PackPlan? _validationPacks;

    /// <summary>Data whose training part is read while training.</summary>
    internal TrainData(TrainingConfig config, StreamPlan stream, ISampleSet validation, IReadOnlyList<string> report)
    {
        _globalBatchSize = config.GlobalBatchSize;
        _stream = stream;
        TrainSamples = new MemorySamples([]);
        ValidationSamples = validation;
        _validationPacks = PackIfAsked(config, validation);
        TrainIters = LastIteration = config.TrainIters ?? throw new ConfigException("DATA024", "streaming needs train_iters, because the size of the data is not known; give it.");
        (OnePassOfValidation, EvalIters) = EvaluationOf(config);
        Report = [.. report, $"training data are read while training: {stream.Settings.Sets.Count} set(s), {LastIteration} iterations of {config.GlobalBatchSize}"];
    }

    internal TrainData(TrainingConfig config, ulong seed, ISampleSet train, ISampleSet validation, IReadOnlyList<string> report)
    {
        _globalBatchSize = config.GlobalBatchSize;
        TrainSamples = train;
        ValidationSamples = validation;
        _trainPacks = PackIfAsked(config, train);
        _validationPacks = PackIfAsked(config, validation);
        var numPlanned = _trainPacks?.Count ?? train.Count;
        CheckSize(config, numPlanned);
        var plan = _trainPlan = new BatchPlan(numPlanned, config.GlobalBatchSize, config.DataloaderType == "cyclic" ? SampleOrder.Shuffled : SampleOrder.Sequential, seed);

        var lastOfData = config.DataloaderType == "single" || config.MaxEpochs is not null ? plan.NumBatches(config.MaxEpochs ?? 1) : (long?)null;
        TrainIters = config.TrainIters ?? lastOfData
            ?? throw new ConfigException("DATA024", "neither train_iters nor max_epochs says how long to train; give one of them.");
        LastIteration = Math.Min(TrainIters, lastOfData ?? long.MaxValue);
        (OnePassOfValidation, EvalIters) = EvaluationOf(config);
        Report = [.. report, .. config.LazyTokenize ? [] : (string[])[TokenLengths.Describe(train)], .. DescribePacking(), DescribeLength(config, plan)];
    }

    /// <summary>Training samples in the order of one epoch before the epoch's own shuffle; a repeated row is the same object.</summary>
    public ISampleSet TrainSamples { get; }

    /// <summary>Packs of the training samples; null without packing.</summary>
    public PackPlan? TrainPacks => _trainPacks;

    /// <summary>Validation samples; may be empty.</summary>
    public ISampleSet ValidationSamples { get; }

    /// <summary>The rows that were split off the training sets, for <c>val_dataset.jsonl</c>; empty when there was no split. Read when asked for.</summary>
    public IReadOnlyList<Conversation> ValidationSplit => field ??= ReadValidationSplit();

    internal Func<IReadOnlyList<Conversation>> ReadValidationSplit { get; init; } = () => [];

    /// <summary>What the samples are read from; freed with these data.</summary>
    internal IDisposable? Sources { get; init; }

    /// <summary>Lines for the console: sizes, rows left out and why, notices.</summary>
    public IReadOnlyList<string> Report { get; }

    /// <summary>Optimizer steps that the schedules are made for: <c>train_iters</c>, else what <c>max_epochs</c> amounts to.</summary>
    public long TrainIters { get; }

    /// <summary>Iteration after which training ends: <see cref="TrainIters"/>, or earlier where <c>max_epochs</c> or a single pass ends first.</summary>
    public long LastIteration { get; }

    /// <summary>Global batches of one evaluation: <c>eval_iters</c>, one pass for −1, 0 without validation data.</summary>
    public long EvalIters { get; }

    /// <summary>True when an evaluation is exactly one pass (its last batch may be short), false when the set is cycled.</summary>
    public bool OnePassOfValidation { get; }

    /// <summary>0-based epoch that an iteration (1-based) begins in.</summary>
    public long EpochOf(long iteration) => _trainPlan?.EpochOf(iteration - 1) ?? 0;

    /// <summary>Identifies the data and their order; a checkpoint goes on with the same only.</summary>
    public ulong PlanHash => _stream?.Hash ?? CreateTrainSource(BatchLayout.SingleRankUnpadded(1)).PlanHash;

    /// <summary>The training batches as one rank sees them; the caller disposes what can be disposed.</summary>
    /// <param name="layout">This rank's layout.</param>
    /// <param name="firstBatch">Index of the first batch that will be asked for: a stream gives them in order.</param>
    /// <param name="cursor">Where a stream goes on; null begins it.</param>
    public IGlobalBatchSource CreateTrainSource(BatchLayout layout, long firstBatch = 0, string? cursor = null) => _stream is { } stream
        ? new StreamBatchSource(stream, layout, firstBatch, cursor is null ? null : StreamCursor.Parse(cursor))
        : new PlannedBatchSource(TrainSamples, _trainPacks, _trainPlan ?? throw new InvalidOperationException("the data have no plan"), layout, LastBatch.ContinueWithNextEpoch);

    /// <summary>The evaluation batches 0 … <see cref="EvalIters"/> − 1 as one rank sees them; null without validation data.</summary>
    public PlannedBatchSource? CreateValidationSource(BatchLayout layout) => ValidationSamples.Count == 0
        ? null
        : new PlannedBatchSource(ValidationSamples, _validationPacks, ValidationPlan(), layout, OnePassOfValidation ? LastBatch.Short : LastBatch.ContinueWithNextEpoch);

    /// <summary>Writes <see cref="ValidationSplit"/> as messages rows; does nothing when there was no split.</summary>
    /// <param name="path">Usually <c>val_dataset.jsonl</c> in the output folder.</param>
    public void WriteValidationSplit(string path)
    {
        if (ValidationSplit.Count == 0) return;
        using var file = new FileStream(path, FileMode.Create, FileAccess.Write);
        foreach (var row in ValidationSplit)
        {
            using (var writer = new Utf8JsonWriter(file, RowOptions)) WriteRow(writer, row);
            file.WriteByte((byte)'\n');
        }
    }

    /// <inheritdoc/>
    public void Dispose() => Sources?.Dispose();

    private (bool OnePass, long NumIterations) EvaluationOf(TrainingConfig config)
    {
        var onePass = config.EvalIters < 0;
        return (onePass, ValidationSamples.Count == 0 ? 0 : onePass ? ValidationPlan().NumBatches(1) : config.EvalIters);
    }

    private BatchPlan ValidationPlan() => new(_validationPacks?.Count ?? ValidationSamples.Count, _globalBatchSize, SampleOrder.Sequential, seed: 0);

    private static PackPlan? PackIfAsked(TrainingConfig config, ISampleSet samples)
    {
        if (!config.Packing || samples.Count == 0) return null;
        var lengths = new int[samples.Count];
        for (var i = 0; i < lengths.Length; i++) lengths[i] = samples.LengthOf(i);
        var capacity = config.PackingLength ?? config.MaxLength ?? lengths.Max();
        return Packing.Plan(lengths, capacity, config.PackingStrategy == "sequential" ? PackingStrategy.Sequential : PackingStrategy.BinPack);
    }

    private static void CheckSize(TrainingConfig config, int numPlanned)
    {
        if (numPlanned >= config.GlobalBatchSize) return;
        throw new ConfigException("DATA021", config.Packing
            ? $"{numPlanned} packs are fewer than one global batch of {config.GlobalBatchSize}; add rows, lower packing_length or lower global_batch_size."
            : $"{numPlanned} training samples are fewer than one global batch of {config.GlobalBatchSize}; add rows, repeat them (path#{config.GlobalBatchSize}) or " +
                "lower global_batch_size.");
    }

    private IEnumerable<string> DescribePacking()
    {
        if (_trainPacks is not { } packs) yield break;
        yield return string.Create(CultureInfo.InvariantCulture, $"packing: {packs.NumSamples} samples in {packs.Count} packs of at most {packs.Capacity} tokens, " +
            $"{packs.NumSamples / (double)packs.Count:F1} samples each, filled to {100 * packs.FillRate(TrainSamples.LengthOf):F2} %");
    }

    private string DescribeLength(TrainingConfig config, BatchPlan plan)
    {
        var what = _trainPacks is null ? "samples" : "packs";
        var length = string.Create(CultureInfo.InvariantCulture, $"{plan.NumSamples} {what}, {config.GlobalBatchSize} in each iteration, {plan.NumBatches(1)} iterations an epoch");
        var epochs = config.MaxEpochs is { } limit ? $"max_epochs = {limit}" : config.DataloaderType == "single" ? "one pass" : "no limit of epochs";
        return string.Create(CultureInfo.InvariantCulture, $"training length: {length}; {epochs}: {LastIteration} iterations ({LastIteration * (double)config.GlobalBatchSize / plan.NumSamples:F2} epochs)");
    }

    private static void WriteRow(Utf8JsonWriter writer, Conversation row)
    {
        writer.WriteStartObject();
        if (row.Tools.Count > 0)
        {
            writer.WriteStartArray("tools"u8);
            foreach (var tool in row.Tools) writer.WriteRawValue(tool);
            writer.WriteEndArray();
        }
        writer.WriteStartArray("messages"u8);
        if (row.System is not null) WriteMessage(writer, new ChatMessage(ChatMessage.SystemRole, row.System));
        foreach (var message in row.Messages) WriteMessage(writer, message);
        writer.WriteEndArray();
        writer.WriteEndObject();
    }

    private static void WriteMessage(Utf8JsonWriter writer, ChatMessage message)
    {
        writer.WriteStartObject();
        writer.WriteString("role"u8, message.Role);
        writer.WriteString("content"u8, message.Content);
        if (message.Loss is { } loss) writer.WriteBoolean("loss"u8, loss);
        writer.WriteEndObject();
    }
}
