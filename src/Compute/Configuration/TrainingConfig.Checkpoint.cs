namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: checkpoint (reference 1.4).
public sealed partial record TrainingConfig
{
    [Option("save", "Output folder; shared by all nodes.",
        Checkpoint, DefaultFrom = "megatron_output/{last part of model}", TrainingAliases = "output_dir")]
    public string? Save { get; init; }

    [Option("save_interval", "Iterations between two checkpoints.", Checkpoint, Aliases = "save_steps")]
    public int SaveInterval { get; init; } = 500;

    [Option("save_total_limit", "Checkpoints that are kept, newest first.", Checkpoint, DefaultFrom = "all")]
    public int? SaveTotalLimit { get; init; }

    [Option("save_safetensors", "Each checkpoint is a Hugging Face folder too; false: training slices only.", Checkpoint)]
    public bool SaveSafetensors { get; init; } = true;

    [Option("async_save", "Write a checkpoint while training goes on, from a copy in host memory.", Checkpoint)]
    public bool AsyncSave { get; init; }

    [Option("no_save_optim", "Leave optimizer and schedule state out of checkpoints.", Checkpoint)]
    public bool NoSaveOptim { get; init; }

    [Option("no_save_rng", "Leave random-number state out of checkpoints.", Checkpoint)]
    public bool NoSaveRng { get; init; }

    [Option("load", "Folder that holds latest_checkpointed_iteration.txt.", Checkpoint, TrainingAliases = "mcore_model")]
    public string? Load { get; init; }

    [Option("no_load_optim", "Do not read optimizer state.", Checkpoint)]
    public bool NoLoadOptim { get; init; }

    [Option("no_load_rng", "Do not read random-number state.", Checkpoint)]
    public bool NoLoadRng { get; init; }

    [Option("finetune", "Weights only: start at iteration 0 with a new optimizer.", Checkpoint)]
    public bool Finetune { get; init; }

    [Option("ckpt_format", "torch_dist is the sharded form, written here as safetensors with a manifest.", Checkpoint,
        Choices = "torch|torch_dist|zarr")]
    public string CkptFormat { get; init; } = "torch_dist";

    [Option("no_initialization", "The model folder must have weights; false: a folder without weights starts from random ones.", Checkpoint)]
    public bool NoInitialization { get; init; } = true;

    [Option("auto_detect_ckpt_format", "Recognise the form of a checkpoint on load: always so here.",
        Checkpoint, Effect = OptionEffect.SpeedOnly)]
    public bool AutoDetectCkptFormat { get; init; } = true;

    [Option("exit_on_missing_checkpoint", "Stop when --load has no checkpoint, instead of training from --model.", Checkpoint)]
    public bool ExitOnMissingCheckpoint { get; init; } = true;
}
