using Megatron.Compute.Configuration;

namespace Megatron.Client.Jobs;

/// <summary>What a followed run leaves in its folder, and what its lines say beside the loss.</summary>
public sealed record RunLogOptions
{
    /// <summary>The run folder, for <c>logging.jsonl</c>.</summary>
    public required string Folder { get; init; }

    /// <summary>Say TFLOP/s per device.</summary>
    public required bool Throughput { get; init; }

    /// <summary>Null when no TensorBoard files are written.</summary>
    public required TensorBoardOptions? TensorBoard { get; init; }

    /// <summary>What a configuration asks for.</summary>
    public static RunLogOptions Of(TrainingConfig config, string folder) => new()
    {
        Folder = folder,
        Throughput = config.LogThroughput,
        TensorBoard = config.ReportTo.Contains("none") ? null : new TensorBoardOptions
        {
            Folder = config.TensorboardDir ?? Path.Combine(folder, "runs"),
            Interval = config.TensorboardLogInterval,
            Timers = config.LogTimersToTensorboard,
            LearningRate = !config.NoLogLearningRateToTensorboard,
            ValidationPerplexity = config.LogValidationPplToTensorboard,
        },
    };
}

/// <summary>Which points go to TensorBoard.</summary>
public sealed record TensorBoardOptions
{
    /// <summary>Folder of the event files.</summary>
    public required string Folder { get; init; }

    /// <summary>Iterations between two points.</summary>
    public required int Interval { get; init; }

    /// <summary>Write iteration-time and throughput.</summary>
    public required bool Timers { get; init; }

    /// <summary>Write learning-rate.</summary>
    public required bool LearningRate { get; init; }

    /// <summary>Write the validation perplexity.</summary>
    public required bool ValidationPerplexity { get; init; }
}
