using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data;

/// <summary>
/// The prepared data of a run: encoded samples, the plan of the global batches, and what to tell the user. The same on every rank that prepares
/// it from the same files and settings; <see cref="PlannedBatchSource.PlanHash"/> proves it.
/// </summary>
public sealed class TrainData
{
    private static readonly JsonWriterOptions RowOptions = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly int _globalBatchSize;
    private readonly BatchPlan _trainPlan;

    internal TrainData(TrainingConfig config, ulong seed, IReadOnlyList<EncodedSample> train, IReadOnlyList<EncodedSample> validation,
        IReadOnlyList<Conversation> validationSplit, IReadOnlyList<string> report)
    {
        _globalBatchSize = config.GlobalBatchSize;
        TrainSamples = train;
        ValidationSamples = validation;
        ValidationSplit = validationSplit;
        Report = report;
        var single = config.DataloaderType == "single";
        _trainPlan = new BatchPlan(train.Count, config.GlobalBatchSize, single ? SampleOrder.Sequential : SampleOrder.Shuffled, seed);

        var lastOfData = single || config.MaxEpochs is not null ? _trainPlan.NumBatches(config.MaxEpochs ?? 1) : (long?)null;
        TrainIters = config.TrainIters ?? lastOfData
            ?? throw new ConfigException("DATA024", "neither train_iters nor max_epochs says how long to train; give one of them.");
        LastIteration = Math.Min(TrainIters, lastOfData ?? long.MaxValue);
        OnePassOfValidation = config.EvalIters < 0;
        EvalIters = validation.Count == 0 ? 0 : OnePassOfValidation ? ValidationPlan().NumBatches(1) : config.EvalIters;
    }

    /// <summary>Training samples in the order of one epoch before the epoch's own shuffle; a repeated row is the same object.</summary>
    public IReadOnlyList<EncodedSample> TrainSamples { get; }

    /// <summary>Validation samples; may be empty.</summary>
    public IReadOnlyList<EncodedSample> ValidationSamples { get; }

    /// <summary>The rows that were split off the training sets, for <c>val_dataset.jsonl</c>; empty when there was no split.</summary>
    public IReadOnlyList<Conversation> ValidationSplit { get; }

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
    public long EpochOf(long iteration) => _trainPlan.EpochOf(iteration - 1);

    /// <summary>The training batches as one rank sees them.</summary>
    public PlannedBatchSource CreateTrainSource(BatchLayout layout) =>
        new(TrainSamples, _trainPlan, layout, LastBatch.ContinueWithNextEpoch);

    /// <summary>The evaluation batches 0 … <see cref="EvalIters"/> − 1 as one rank sees them; null without validation data.</summary>
    public PlannedBatchSource? CreateValidationSource(BatchLayout layout) => ValidationSamples.Count == 0
        ? null
        : new PlannedBatchSource(ValidationSamples, ValidationPlan(), layout, OnePassOfValidation ? LastBatch.Short : LastBatch.ContinueWithNextEpoch);

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

    private BatchPlan ValidationPlan() => new(ValidationSamples.Count, _globalBatchSize, SampleOrder.Sequential, seed: 0);

    private static void WriteRow(Utf8JsonWriter writer, Conversation row)
    {
        writer.WriteStartObject();
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
