namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: logging (reference 1.6).
public sealed partial record TrainingConfig
{
    [Option("log_params_norm", "Log the norm of the weights.", Logging)]
    public bool LogParamsNorm { get; init; }

    [Option("log_throughput", "Log TFLOP/s per device by the closed formula.", Logging)]
    public bool LogThroughput { get; init; } = true;

    [Option("tensorboard_log_interval", "Iterations between two TensorBoard points.", Logging)]
    public int TensorboardLogInterval { get; init; } = 1;

    [Option("tensorboard_queue_size", "Points held before they are written.", Logging, Effect = OptionEffect.SpeedOnly)]
    public int TensorboardQueueSize { get; init; } = 50;

    [Option("log_timers_to_tensorboard", "Write timers to TensorBoard.", Logging)]
    public bool LogTimersToTensorboard { get; init; } = true;

    [Option("no_log_learning_rate_to_tensorboard", "Leave the learning rate out of TensorBoard.", Logging)]
    public bool NoLogLearningRateToTensorboard { get; init; }

    [Option("log_validation_ppl_to_tensorboard", "Write the validation perplexity to TensorBoard.", Logging)]
    public bool LogValidationPplToTensorboard { get; init; } = true;

    [Option("log_memory_to_tensorboard", "Write memory figures to TensorBoard: none on the CPU.", Logging, Effect = OptionEffect.SpeedOnly)]
    public bool LogMemoryToTensorboard { get; init; } = true;

    [Option("logging_level", "Least severity that is logged, a Python level number: 10 debug, 20 information, 30 warning, 40 error.",
        Logging)]
    public int? LoggingLevel { get; init; }

    [Option("report_to", "Places for metrics beside logging.jsonl; none turns the TensorBoard files off.", Logging, Choices = "none|tensorboard|wandb|swanlab")]
    public IReadOnlyList<string> ReportTo { get; init; } = [];

    [Option("wandb_project", "Weights & Biases project; empty = off.", Logging)]
    public string? WandbProject { get; init; }

    [Option("wandb_exp_name", "Weights & Biases run name; required with wandb_project.", Logging)]
    public string? WandbExpName { get; init; }

    [Option("wandb_save_dir", "Folder of the Weights & Biases files.", Logging, DefaultFrom = "{save}/wandb")]
    public string? WandbSaveDir { get; init; }
}
