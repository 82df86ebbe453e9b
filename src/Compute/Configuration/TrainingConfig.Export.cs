namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: export (reference 2.5).
public sealed partial record TrainingConfig
{
    [Option("to_mcore", "Hugging Face folder → training checkpoint.", Export)]
    public bool ToMcore { get; init; }

    [Option("to_hf", "Training checkpoint → Hugging Face folder.", Export)]
    public bool ToHf { get; init; }

    [Option("mcore_model", "Folder that holds latest_checkpointed_iteration.txt.", Export)]
    public string? McoreModel { get; init; }

    [Option("output_dir", "Output folder; must not exist unless exist_ok.", Export, DefaultFrom = "{input}-mcore or {input}-hf")]
    public string? OutputDir { get; init; }

    [Option("exist_ok", "Write into an existing folder.", Export)]
    public bool ExistOk { get; init; }

    [Option("thread_count", "Files per rank.", Export, DefaultFrom = "size of the model")]
    public int? ThreadCount { get; init; }

    [Option("test_convert_precision", "Run both models after the conversion and compare their logits.", Export)]
    public bool TestConvertPrecision { get; init; }

    [Option("safe_serialization", "Write safetensors: always so here.", Export)]
    public bool SafeSerialization { get; init; } = true;

    [Option("max_shard_size", "Largest weight file, e.g. 5GB.", Export)]
    public string MaxShardSize { get; init; } = "5GB";

    [Option("merge_lora", "Merge adapters into the weights.", Export)]
    public bool MergeLora { get; init; }

    [Option("push_to_hub", "Upload the result.", Export)]
    public bool PushToHub { get; init; }

    [Option("hub_model_id", "Name on the hub.", Export)]
    public string? HubModelId { get; init; }

    [Option("hub_private_repo", "Upload as private.", Export)]
    public bool HubPrivateRepo { get; init; }

    [Option("commit_message", "Message of the upload.", Export)]
    public string? CommitMessage { get; init; }

    [Option("quant_method", "Kind of quantisation.", Export)]
    public string? QuantMethod { get; init; }

    [Option("quant_bits", "Bits of quantisation.", Export)]
    public int? QuantBits { get; init; }

    [Option("to_ollama", "Write an Ollama model file.", Export)]
    public bool ToOllama { get; init; }
}
