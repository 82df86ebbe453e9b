using System.Text;
using System.Text.Json;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;

namespace Megatron.Client.Jobs;

/// <summary>
/// <c>--output json</c>: one JSON object per event and line, for programs that follow a run. Lines of the console itself are events of kind
/// "console". A number that is not finite is null.
/// </summary>
/// <param name="output">Where the lines go.</param>
/// <param name="inner">Also sees every event: it keeps the files of the run.</param>
/// <param name="time">Time of the console's own lines.</param>
public sealed class JobEventLines(TextWriter output, IJobConsole inner, TimeProvider time) : IJobConsole
{
    private readonly Lock gate = new();

    /// <inheritdoc/>
    public void Show(JobEvent item)
    {
        inner.Show(item);
        Write(item.Time, json =>
        {
            json.WriteString("event", KindOf(item));
            json.WriteNumber("sequence", item.Sequence);
            WriteFields(json, item);
        });
    }

    /// <inheritdoc/>
    public void Say(string line) => Write(time.GetUtcNow(), json =>
    {
        json.WriteString("event", "console");
        json.WriteString("text", line);
    });

    /// <inheritdoc/>
    public void SayError(string line) => inner.SayError(line);

    private static string KindOf(JobEvent item) => item switch
    {
        JobPhaseChanged => "phase",
        JobPlanned => "plan",
        JobStepDone => "step",
        JobEvaluated => "evaluation",
        JobCheckpointSaved => "checkpoint",
        JobNotice => "notice",
        JobStraggler => "straggler",
        JobEventsSkipped => "skipped",
        _ => item.GetType().Name,
    };

    private static void WriteFields(Utf8JsonWriter json, JobEvent item)
    {
        switch (item)
        {
            case JobPhaseChanged phase:
                json.WriteString("phase", phase.Phase.ToString());
                json.WriteNumber("attempt", phase.Attempt);
                json.WriteString("reason", phase.Reason);
                if (phase.Outcome is { } outcome) json.WriteNumber("exit_code", outcome.ExitCode);
                break;
            case JobPlanned planned:
                json.WriteNumber("train_iters", planned.Plan.TrainIterations);
                json.WriteNumber("global_batch_size", planned.Plan.GlobalBatchSize);
                json.WriteNumber("world_size", planned.WorldSize);
                break;
            case JobStepDone { Step: var step }:
                json.WriteNumber("iteration", step.Iteration);
                WriteNumber(json, "lm_loss", step.Loss);
                json.WriteNumber("loss_bits", step.LossBits);
                WriteNumber(json, "grad_norm", step.GradNorm);
                if (step.ParamsNorm is { } norm) WriteNumber(json, "params_norm", norm);
                WriteNumber(json, "learning_rate", step.LearningRate);
                WriteNumber(json, "loss_scale", step.LossScale);
                json.WriteBoolean("skipped", step.Skipped);
                WriteNumber(json, "step_time_ms", step.StepTime.TotalMilliseconds);
                break;
            case JobEvaluated { Evaluation: var evaluation }:
                json.WriteNumber("iteration", evaluation.Iteration);
                WriteNumber(json, "lm_loss", evaluation.Loss);
                json.WriteBoolean("final", evaluation.Final);
                break;
            case JobCheckpointSaved { Checkpoint: var checkpoint }:
                json.WriteNumber("iteration", checkpoint.Iteration);
                json.WriteString("folder", checkpoint.Folder);
                break;
            case JobNotice notice:
                json.WriteString("level", notice.Level == RankNoticeLevel.Warning ? "warning" : "information");
                json.WriteNumber("rank", notice.Rank);
                json.WriteString("text", notice.Text);
                break;
            case JobStraggler straggler:
                json.WriteNumber("rank", straggler.Rank);
                json.WriteNumber("stage", straggler.Stage);
                json.WriteNumber("iteration", straggler.Iteration);
                if (straggler.Factor is { } factor) WriteNumber(json, "factor", factor);
                else json.WriteNull("factor");
                break;
            case JobEventsSkipped skipped:
                json.WriteNumber("num_skipped", skipped.NumSkipped);
                break;
        }
    }

    private static void WriteNumber(Utf8JsonWriter json, string name, double value)
    {
        if (double.IsFinite(value)) json.WriteNumber(name, value);
        else json.WriteNull(name);
    }

    private void Write(DateTimeOffset at, Action<Utf8JsonWriter> write)
    {
        using var buffer = new MemoryStream();
        using (var json = new Utf8JsonWriter(buffer))
        {
            json.WriteStartObject();
            json.WriteString("time", at);
            write(json);
            json.WriteEndObject();
        }
        lock (gate) // a signal speaks while events are shown
        {
            output.WriteLine(Encoding.UTF8.GetString(buffer.ToArray()));
            output.Flush();
        }
    }
}
