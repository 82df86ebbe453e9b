using Megatron.Grains.Stages;

namespace Megatron.Client.Jobs;

/// <summary>
/// The points of a run under the reference's TensorBoard tags, each also over the samples consumed (" vs samples"). The file is made at the
/// first point, so that a refused run leaves nothing behind.
/// </summary>
/// <param name="options">Which points.</param>
/// <param name="globalBatchSize">Samples of a step.</param>
/// <param name="worldSize">Ranks that share a step's work.</param>
public sealed class TensorBoardLog(TensorBoardOptions options, int globalBatchSize, int worldSize) : IDisposable
{
    private const double MaxPerplexityExponent = 20;

    private TensorBoardFile? file;

    /// <summary>Takes a step; one in <see cref="TensorBoardOptions.Interval"/> is written.</summary>
    public void Write(DateTimeOffset time, StageStepReport step)
    {
        if (step.Iteration % options.Interval != 0) return;
        var points = new List<(string, double)>();
        if (options.LearningRate) points.Add(("learning-rate", step.LearningRate));
        points.Add(("batch-size", globalBatchSize));
        if (!step.Skipped) points.Add(("lm loss", step.Loss));
        points.Add(("loss-scale", step.LossScale));
        points.Add(("grad-norm", step.GradNorm));
        if (step.ParamsNorm is { } norm) points.Add(("params-norm", norm));
        WriteBoth(time, step.Iteration, points);
        if (!options.Timers) return;
        var seconds = step.StepTime.TotalSeconds;
        WriteBoth(time, step.Iteration, [("iteration-time", seconds), ("throughput", seconds > 0 ? step.FloatingPointOperations / (seconds * 1e12 * worldSize) : 0)]);
    }

    /// <summary>Takes an evaluation.</summary>
    public void Write(DateTimeOffset time, StageEvaluation evaluation)
    {
        var points = new List<(string, double)> { ("lm loss validation", evaluation.Loss) };
        if (options.ValidationPerplexity) points.Add(("lm loss validation ppl", Math.Exp(Math.Min(MaxPerplexityExponent, evaluation.Loss))));
        WriteBoth(time, evaluation.Iteration, points);
    }

    /// <inheritdoc/>
    public void Dispose() => file?.Dispose();

    private void WriteBoth(DateTimeOffset time, long iteration, IReadOnlyList<(string Tag, double Value)> points)
    {
        file ??= new TensorBoardFile(options.Folder, time);
        file.Write(time, iteration, points);
        file.Write(time, iteration * globalBatchSize, [.. points.Select(point => (point.Tag + " vs samples", point.Value))]);
    }
}
