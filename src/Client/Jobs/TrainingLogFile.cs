using System.Globalization;
using System.Text.Json;
using Megatron.Grains.Stages;

namespace Megatron.Client.Jobs;

/// <summary>
/// <c>logging.jsonl</c> of a run folder: one JSON object per log interval and per evaluation, with the keys of the reference's version 3.7.
/// Elapsed times are in milliseconds, throughput in TFLOP/s per GPU; a value that is not finite is null. A resumed run appends.
/// </summary>
public sealed class TrainingLogFile : IDisposable
{
    private readonly string path;
    private FileStream? file;

    private readonly bool hasThroughput;

    /// <param name="options">Names the run folder; it is made when the first row is written, so that a refused run leaves nothing behind.</param>
    public TrainingLogFile(RunLogOptions options) => (path, hasThroughput) = (Path.Combine(options.Folder, "logging.jsonl"), options.Throughput);

    /// <summary>Appends the row of a log interval.</summary>
    public void Write(StepSummary row) => Append(json =>
    {
        WriteNumber(json, "lm loss", row.Loss);
        if (row.LoadBalancingLoss is { } balance) WriteNumber(json, "load_balancing_loss", balance);
        if (row.ZLoss is { } zLoss) WriteNumber(json, "z_loss", zLoss);
        WriteNumber(json, "grad_norm", row.GradNorm);
        WriteNumber(json, "learning_rate", row.LearningRate);
        WriteNumber(json, "elapsed_time_per_iteration", row.ElapsedMsPerIteration);
        if (hasThroughput) WriteNumber(json, "throughput", row.TeraflopsPerGpu);
        if (row.ParamsNorm is { } norm) WriteNumber(json, "params_norm", norm);
        WriteNumber(json, "loss_scale", row.LossScale);
        json.WriteNumber("consumed_samples", row.ConsumedSamples);
        json.WriteString("global_step/max_steps", Progress(row.Iteration, row.TrainIterations));
    });

    /// <summary>Appends the row of an evaluation.</summary>
    public void Write(StageEvaluation evaluation, long trainIterations) => Append(json =>
    {
        WriteNumber(json, "eval_lm loss", evaluation.Loss);
        json.WriteString("global_step/max_steps", Progress(evaluation.Iteration, trainIterations));
    });

    public void Dispose() => file?.Dispose();

    private void Append(Action<Utf8JsonWriter> write)
    {
        if (file is null)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(path) ?? ".");
            file = new FileStream(path, FileMode.Append, FileAccess.Write, FileShare.ReadWrite);
        }
        using (var json = new Utf8JsonWriter(file))
        {
            json.WriteStartObject();
            write(json);
            json.WriteEndObject();
        }
        file.WriteByte((byte)'\n');
        file.Flush();
    }

    private static void WriteNumber(Utf8JsonWriter json, string name, double value)
    {
        if (double.IsFinite(value))
            json.WriteNumber(name, value);
        else
            json.WriteNull(name);
    }

    private static string Progress(long iteration, long trainIterations) =>
        string.Create(CultureInfo.InvariantCulture, $"{iteration}/{trainIterations}");
}
