using Megatron.Grains.Stages;

namespace Megatron.Client.Jobs;

/// <summary>What one console line and one row of logging.jsonl say about the steps since the line before.</summary>
public sealed record StepSummary
{
    public required long Iteration { get; init; }

    public required long TrainIterations { get; init; }

    public required long ConsumedSamples { get; init; }

    public required int GlobalBatchSize { get; init; }

    /// <summary>Mean of the slowest rank's time.</summary>
    public required double ElapsedMsPerIteration { get; init; }

    /// <summary>Model TFLOP/s per rank, recompute not counted.</summary>
    public required double TeraflopsPerGpu { get; init; }

    /// <summary>Mean over the steps that were not skipped; NaN when all were.</summary>
    public required double Loss { get; init; }

    /// <summary>Mean balance loss of the routers, without its coefficient; null when there is none.</summary>
    public required double? LoadBalancingLoss { get; init; }

    /// <summary>Mean z-loss of the routers, likewise.</summary>
    public required double? ZLoss { get; init; }

    /// <summary>Of the last step, as it was applied.</summary>
    public required double LearningRate { get; init; }

    /// <summary>Of the last step.</summary>
    public required double LossScale { get; init; }

    /// <summary>Of the last step.</summary>
    public required double GradNorm { get; init; }

    /// <summary>Of the last step; null unless it was asked for.</summary>
    public required double? ParamsNorm { get; init; }

    public required int NumSkipped { get; init; }

    /// <summary>Steps whose loss was not finite.</summary>
    public required int NumNan { get; init; }
}

/// <summary>
/// Gathers steps until a line is due: at every multiple of the log interval, and after iteration 1, so that a run with a long interval shows a
/// sign of life (the reference does so since its version 4).
/// </summary>
public sealed class StepWindow
{
    private readonly long trainIterations;
    private readonly int logInterval;
    private readonly int globalBatchSize;
    private readonly int worldSize;
    private readonly List<StageStepReport> steps = [];

    public StepWindow(long trainIterations, int logInterval, int globalBatchSize, int worldSize)
    {
        this.trainIterations = trainIterations;
        this.logInterval = Math.Max(1, logInterval);
        this.globalBatchSize = globalBatchSize;
        this.worldSize = worldSize;
    }

    /// <summary>Takes a step; returns the summary when a line is due.</summary>
    public StepSummary? Add(StageStepReport step)
    {
        steps.Add(step);
        if (step.Iteration != 1 && step.Iteration % logInterval != 0)
            return null;
        var summary = Summarise(step);
        steps.Clear();
        return summary;
    }

    private StepSummary Summarise(StageStepReport last)
    {
        double seconds = steps.Sum(step => step.StepTime.TotalSeconds);
        var applied = steps.Where(step => !step.Skipped).ToList();
        return new StepSummary
        {
            Iteration = last.Iteration,
            TrainIterations = trainIterations,
            ConsumedSamples = last.Iteration * globalBatchSize,
            GlobalBatchSize = globalBatchSize,
            ElapsedMsPerIteration = seconds * 1000 / steps.Count,
            TeraflopsPerGpu = seconds > 0 ? steps.Sum(step => step.FloatingPointOperations) / (seconds * 1e12 * worldSize) : 0,
            Loss = applied.Count == 0 ? double.NaN : applied.Sum(step => step.Loss) / applied.Count,
            LoadBalancingLoss = steps.Average(step => step.LoadBalancingLoss),
            ZLoss = steps.Average(step => step.ZLoss),
            LearningRate = last.LearningRate,
            LossScale = last.LossScale,
            GradNorm = last.GradNorm,
            ParamsNorm = last.ParamsNorm,
            NumSkipped = steps.Count - applied.Count,
            NumNan = steps.Count(step => !double.IsFinite(step.Loss)),
        };
    }
}
