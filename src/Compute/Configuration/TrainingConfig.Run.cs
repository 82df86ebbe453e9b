namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: where and how to run.
public sealed partial record TrainingConfig
{
    [Option("device", "Kind of device; auto takes GPUs when there are any.", Run, Choices = "auto|cpu|cuda")]
    public string Device { get; init; } = "auto";

    [Option("devices", "Device numbers of this process, e.g. 0,1.", Run, DefaultFrom = "all")]
    public string? Devices { get; init; }

    [Option("cluster", "Address of the Redis through which running silos are found; without it the run takes place in this process.", Run)]
    public string? Cluster { get; init; }

    [Option("job_id", "Name of the job.", Run, DefaultFrom = "the output folder")]
    public string? JobId { get; init; }

    [Option("max_restarts", "How often the ranks are started again after operating faults, with no checkpoint in between, before the job fails.", Run)]
    public int MaxRestarts { get; init; }

    [Option("resume", "Continue from the newest complete checkpoint of the output folder.", Run)]
    public bool Resume { get; init; }

    [Option("dry_run", "Check options, data and memory, print the plan and stop.", Run)]
    public bool DryRun { get; init; }

    [Option("output", "Form of what is printed.", Run, Choices = "text|json")]
    public string Output { get; init; } = "text";

    [Option("tokenizer", "Tokenizer file or folder.", Run, DefaultFrom = "the model folder")]
    public string? Tokenizer { get; init; }

    [Option("input", "File of texts or rows for megatron tokenize.", Run)]
    public string? Input { get; init; }
}
