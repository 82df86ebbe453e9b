namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: training parameters (reference 1.1).
public sealed partial record TrainingConfig
{
    [Option("micro_batch_size", "Samples (or packs) per data-parallel rank and micro-step; they are joined in one row.", Training,
        Aliases = "per_device_train_batch_size")]
    public int MicroBatchSize { get; init; } = 1;

    [Option("global_batch_size", "Samples (or packs) per optimizer step: micro_batch_size × data-parallel size × accumulation.", Training)]
    public int GlobalBatchSize { get; init; } = 16;

    [Option("recompute_granularity", "What backward computes again instead of keeping: nothing, the recompute_modules, or whole layers.",
        Training, Choices = "none|selective|full")]
    public string RecomputeGranularity { get; init; } = "selective";

    [Option("recompute_method",
        "With full: units of recompute_num_layers layers (uniform), or the first recompute_num_layers of a stage (block).",
        Training, Choices = "uniform|block")]
    public string? RecomputeMethod { get; init; }

    [Option("recompute_num_layers", "With full: layers per unit (uniform) or recomputed layers per pipeline stage (block).", Training)]
    public int? RecomputeNumLayers { get; init; }

    [Option("recompute_modules", "With selective: core_attn, mlp, moe, moe_act, layernorm.", Training,
        Choices = "core_attn|mlp|moe|moe_act|layernorm|mla_up_proj")]
    public IReadOnlyList<string> RecomputeModules { get; init; } = ["core_attn"];

    [Option("deterministic_mode", "Same bits in each repetition: fixed order of additions, no atomics; always so on the CPU.", Training,
        Effect = OptionEffect.SpeedOnly)]
    public bool DeterministicMode { get; init; }

    [Option("train_iters", "Optimizer steps of the run.",
        Training, DefaultFrom = "max_epochs and the size of the data", Aliases = "max_steps")]
    public int? TrainIters { get; init; }

    [Option("log_interval", "Iterations between two lines of the log.", Training, Aliases = "logging_steps")]
    public int LogInterval { get; init; } = 5;

    [Option("tensorboard_dir", "Folder of the TensorBoard files.", Training, DefaultFrom = "{save}/runs")]
    public string? TensorboardDir { get; init; }

    [Option("no_masked_softmax_fusion", "Turn the fused masked softmax off.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool NoMaskedSoftmaxFusion { get; init; }

    [Option("no_bias_dropout_fusion", "Turn the fused bias and dropout off.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool NoBiasDropoutFusion { get; init; }

    [Option("no_bias_swiglu_fusion", "Turn the fused SwiGLU off.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool NoBiasSwigluFusion { get; init; }

    [Option("no_rope_fusion", "Turn the fused rotary embedding off.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool NoRopeFusion { get; init; }

    [Option("no_gradient_accumulation_fusion", "Turn the accumulation of weight gradients inside the product off.", Training,
        Effect = OptionEffect.SpeedOnly)]
    public bool NoGradientAccumulationFusion { get; init; }

    [Option("cross_entropy_loss_fusion", "Fused vocabulary-parallel cross entropy.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool CrossEntropyLossFusion { get; init; }

    [Option("calculate_per_token_loss",
        "true: divide by the label tokens of the global batch; false: by those of each micro-batch, then by the micro-batches.", Training)]
    public bool CalculatePerTokenLoss { get; init; } = true;

    [Option("attention_backend", "Attention kernel; on the CPU there is one.", Training, Choices = "flash|fused|unfused|local|auto",
        Effect = OptionEffect.SpeedOnly)]
    public string AttentionBackend { get; init; } = "auto";

    [Option("use_flash_attn", "Ask for flash attention.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool UseFlashAttn { get; init; }

    [Option("optimizer", "adam is AdamW (decoupled weight decay).", Training, Choices = "adam|sgd")]
    public string Optimizer { get; init; } = "adam";

    [Option("optimizer_cpu_offload", "Keep optimizer state in host memory.", Training)]
    public bool OptimizerCpuOffload { get; init; }

    [Option("optimizer_offload_fraction", "Share of the optimizer state in host memory, 0 to 1.", Training)]
    public double OptimizerOffloadFraction { get; init; } = 1.0;

    [Option("dataloader_type", "cyclic: shuffled anew in each epoch; single: one pass in order; external: in the order of the data source, epoch after epoch (what streaming means).", Training,
        Choices = "single|cyclic|external")]
    public string DataloaderType { get; init; } = "cyclic";

    [Option("manual_gc", "Collect garbage only at chosen steps.", Training, Effect = OptionEffect.SpeedOnly)]
    public bool ManualGc { get; init; }

    [Option("manual_gc_interval", "Steps between two collections; 0 = none.", Training, Effect = OptionEffect.SpeedOnly)]
    public int ManualGcInterval { get; init; }

    [Option("seed", "Seed of initialisation, dropout and, unless data_seed is given, of the data order.", Training)]
    public int Seed { get; init; } = 42;

    [Option("num_workers", "Threads of each rank that prepare batches while it computes; 0 = none. A stream has one.", Training, Aliases = "dataloader_num_workers")]
    public int NumWorkers { get; init; } = 4;

    [Option("seq_length", "Tokens per sample in the throughput formula and in divisibility checks; not a limit (see max_length).", Training,
        DefaultFrom = "max_length, then max_position_embeddings")]
    public int? SeqLength { get; init; }

    [Option("use_cpu_initialization", "Draw initial weights on the CPU; they do not depend on device or layout here in either case.",
        Training, Effect = OptionEffect.SpeedOnly)]
    public bool UseCpuInitialization { get; init; }

    [Option("no_create_attention_mask_in_dataloader", "No mask tensor is made: causality follows from the sample borders, always so here.",
        Training, Effect = OptionEffect.SpeedOnly)]
    public bool NoCreateAttentionMaskInDataloader { get; init; } = true;

    [Option("cuda_graph", "Record forward and backward once and replay them as a CUDA graph: for small models on one GPU with batches of one shape.", Training)]
    public bool CudaGraph { get; init; }

    [Option("extra_megatron_kwargs", "JSON object or file with further options; its values win over the others.", Training, IsJson = true,
        Aliases = "megatron_extra_kwargs")]
    public string? ExtraMegatronKwargs { get; init; }
}
