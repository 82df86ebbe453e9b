using System.Globalization;
using Megatron.Grains.Stages;

namespace Megatron.Client.Jobs;

/// <summary>The lines of a run as scripts that read the reference's console expect them (spacing, field names, number formats).</summary>
public static class ConsoleLines
{
    private const double MaxPerplexityExponent = 20;

    /// <summary>The line of a log interval.</summary>
    public static string Step(DateTimeOffset time, StepSummary row, bool showThroughput)
    {
        string throughput = showThroughput ? $"throughput per GPU (TFLOP/s/GPU): {Fixed(row.TeraflopsPerGpu, "F1")} | " : "";
        string paramsNorm = row.ParamsNorm is { } norm ? $"params norm: {Fixed(norm, "F3")} | " : "";
        return string.Create(CultureInfo.InvariantCulture,
            $"[{Time(time)}] iteration {row.Iteration,8}/{row.TrainIterations,8} | consumed samples: {row.ConsumedSamples,12} | " +
            $"elapsed time per iteration (ms): {Fixed(row.ElapsedMsPerIteration, "F1")} | {throughput}learning rate: {Scientific(row.LearningRate)} | " +
            $"global batch size: {row.GlobalBatchSize,5} | lm loss: {Scientific(row.Loss)} | {Routers(row)}loss scale: {Fixed(row.LossScale, "F1")} | " +
            $"grad norm: {Fixed(row.GradNorm, "F3")} | {paramsNorm}number of skipped iterations: {row.NumSkipped,3} | number of nan iterations: {row.NumNan,3} |");
    }

    private static string Routers(StepSummary row) =>
        (row.LoadBalancingLoss is { } balance ? $"load_balancing_loss: {Scientific(balance)} | " : "") + (row.ZLoss is { } zLoss ? $"z_loss: {Scientific(zLoss)} | " : "");

    /// <summary>The lines of an evaluation: the result between two rows of dashes.</summary>
    public static IReadOnlyList<string> Evaluation(StageEvaluation evaluation)
    {
        string set = evaluation.Final ? " on validation set" : "";
        double perplexity = Math.Exp(Math.Min(MaxPerplexityExponent, evaluation.Loss));
        string line = string.Create(CultureInfo.InvariantCulture,
            $" validation loss at iteration {evaluation.Iteration}{set} | lm loss value: {Scientific(evaluation.Loss)} | lm loss PPL: {Scientific(perplexity)} | ");
        string dashes = new('-', line.Length + 1);
        return [dashes, line, dashes];
    }

    /// <summary>The line after a checkpoint got its final name.</summary>
    public static string Saved(long iteration, string folder) => string.Create(CultureInfo.InvariantCulture,
        $"  successfully saved checkpoint from iteration {iteration,7} to {folder}");

    /// <summary>A time as it stands in the lines.</summary>
    public static string Time(DateTimeOffset time) => time.ToString("yyyy-MM-dd HH:mm:ss", CultureInfo.InvariantCulture);

    private static string Scientific(double value) => NotFinite(value) ?? value.ToString("0.000000E+00", CultureInfo.InvariantCulture);

    private static string Fixed(double value, string format) => NotFinite(value) ?? value.ToString(format, CultureInfo.InvariantCulture);

    private static string? NotFinite(double value) => value switch
    {
        double.NaN => "NAN",
        double.PositiveInfinity => "INF",
        double.NegativeInfinity => "-INF",
        _ => null,
    };
}
