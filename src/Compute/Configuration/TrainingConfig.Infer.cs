namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: inference (reference 2.4).
public sealed partial record TrainingConfig
{
    [Option("adapters", "Adapter folders.", Infer)]
    public IReadOnlyList<string> Adapters { get; init; } = [];

    [Option("ckpt_dir", "Checkpoint folder.", Infer)]
    public string? CkptDir { get; init; }

    [Option("infer_backend", "Program that generates; pt is the built-in one.", Infer, Choices = "pt|vllm|lmdeploy")]
    public string InferBackend { get; init; } = "pt";

    [Option("stream", "Print tokens as they come.", Infer)]
    public bool Stream { get; init; }

    [Option("max_new_tokens", "Most tokens of an answer.", Infer, DefaultFrom = "the model's length less the prompt")]
    public int? MaxNewTokens { get; init; }

    [Option("temperature", "Spread of sampling; 0 = the likeliest token.", Infer, DefaultFrom = "generation_config.json")]
    public double? Temperature { get; init; }

    [Option("top_k", "Sample from the k likeliest tokens.", Infer, DefaultFrom = "generation_config.json")]
    public int? TopK { get; init; }

    [Option("top_p", "Sample from the likeliest tokens that hold this share of probability.",
        Infer, DefaultFrom = "generation_config.json")]
    public double? TopP { get; init; }

    [Option("repetition_penalty", "Divides scores of tokens already present.", Infer, DefaultFrom = "generation_config.json")]
    public double? RepetitionPenalty { get; init; }

    [Option("num_beams", "Beams of a beam search.", Infer)]
    public int NumBeams { get; init; } = 1;

    [Option("stop_words", "Further texts that end an answer.", Infer)]
    public IReadOnlyList<string> StopWords { get; init; } = [];

    [Option("logprobs", "Return log probabilities.", Infer)]
    public bool Logprobs { get; init; }

    [Option("top_logprobs", "Alternatives per position.", Infer)]
    public int? TopLogprobs { get; init; }

    [Option("max_batch_size", "Prompts answered together.", Infer)]
    public int MaxBatchSize { get; init; } = 1;

    [Option("val_dataset_sample", "Rows taken from the validation data.", Infer, DefaultFrom = "all")]
    public int? ValDatasetSample { get; init; }

    [Option("result_path", "jsonl file of the answers.", Infer, DefaultFrom = "{model folder}/infer_result/{time}.jsonl")]
    public string? ResultPath { get; init; }

    [Option("metric", "Score of batch answers.", Infer, Choices = "acc|rouge")]
    public string? Metric { get; init; }
}
