namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: model and run (reference 2.1).
public sealed partial record TrainingConfig
{
    [Option("model", "Local folder of a Hugging Face model. May be left out when --load or --mcore_model has an args.json.", Base)]
    public string? Model { get; init; }

    [Option("model_type", "Family of the model, e.g. qwen3; found from config.json when not given.", Base)]
    public string? ModelType { get; init; }

    [Option("model_revision", "Revision on a hub.", Base)]
    public string? ModelRevision { get; init; }

    [Option("torch_dtype", "Number format of weights and activations. A float32 model trains in float32, not in float16.", Base,
        Choices = "float16|bfloat16|float32", DefaultFrom = "config.json")]
    public string? TorchDtype { get; init; }

    [Option("attn_impl", "Attention implementation of Hugging Face; --attention_backend is what counts here.",
        Base, Effect = OptionEffect.SpeedOnly)]
    public string? AttnImpl { get; init; }

    [Option("train_type", "full trains all weights.", Base, Choices = "full|lora", Aliases = "tuner_type")]
    public string TrainType { get; init; } = "full";

    [Option("use_hf", "Fetch from Hugging Face instead of ModelScope.", Base)]
    public bool UseHf { get; init; }

    [Option("hub_token", "Token of the hub; never written to args.json.", Base)]
    public string? HubToken { get; init; }

    [Option("load_args",
        "Fill options that were not given from the args.json in the --model, --mcore_model or --load folder (first that has one).", Base)]
    public bool LoadArgs { get; init; } = true;

    [Option("load_data_args", "Take the data options from that args.json too.", Base)]
    public bool LoadDataArgs { get; init; }

    [Option("ddp_timeout", "Time limit in seconds of the base arguments; --distributed_timeout_minutes is what counts here.",
        Base, Effect = OptionEffect.SpeedOnly)]
    public int DdpTimeout { get; init; } = 18_000_000;

    [Option("ddp_backend", "Collectives of the base arguments; --distributed_backend is what counts here.", Base, Choices = "nccl|gloo",
        Effect = OptionEffect.SpeedOnly)]
    public string? DdpBackend { get; init; }

    [Option("custom_register_path", "Python files that register models and data sets; this program runs no Python.", Base)]
    public IReadOnlyList<string> CustomRegisterPath { get; init; } = [];

    [Option("external_plugins", "Python plug-ins; this program runs no Python.", Base)]
    public IReadOnlyList<string> ExternalPlugins { get; init; } = [];

    [Option("ignore_args_error", "Go on when an option is unknown (each is named in a warning).", Base)]
    public bool IgnoreArgsError { get; init; }

    [Option("model_kwargs", "Further settings of the model class, JSON.", Base, IsJson = true)]
    public string? ModelKwargs { get; init; }

    [Option("device_map", "Placement of layers on devices, JSON; parallel sizes decide here.", Base)]
    public string? DeviceMap { get; init; }

    [Option("max_memory", "Memory limit per device, JSON.", Base, IsJson = true)]
    public string? MaxMemory { get; init; }

    [Option("init_strategy", "How missing weights are drawn.", Base)]
    public string? InitStrategy { get; init; }

    [Option("task_type", "What the model is trained for.", Base, Choices = "causal_lm|seq_cls|embedding|reranker")]
    public string TaskType { get; init; } = "causal_lm";

    [Option("num_labels", "Classes of a sequence classifier.", Base)]
    public int? NumLabels { get; init; }

    [Option("problem_type", "Kind of classification.", Base)]
    public string? ProblemType { get; init; }
}
