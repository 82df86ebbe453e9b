namespace Megatron.Compute.Configuration;

// Options: template (reference 2.3).
public sealed partial record TrainingConfig
{
    [Option("template", "Chat template, e.g. qwen2_5, qwen3, llama3.", OptionSection.Template, DefaultFrom = "args.json or model_type")]
    public string? Template { get; init; }

    [Option("system", "System prompt: text, or the path of a .txt file. An empty text removes the system block.", OptionSection.Template,
        DefaultFrom = "the template")]
    public string? System { get; init; }

    [Option("max_length", "Longest sample in tokens after encoding.", OptionSection.Template, DefaultFrom = "max_position_embeddings")]
    public int? MaxLength { get; init; }

    [Option("truncation_strategy",
        "A longer sample is dropped (delete), keeps its tail (left) or its head (right), or is cut up (split, pt only).",
        OptionSection.Template, Choices = "delete|left|right|split")]
    public string TruncationStrategy { get; init; } = "delete";

    [Option("loss_scale", "Which answers carry loss and with what weight; not the fp16 loss scale (see initial_loss_scale).",
        OptionSection.Template, Choices = "default|last_round|all|ignore_empty_think|react|hermes|qwen|agentflan|alpha_umi")]
    public string LossScale { get; init; } = "default";

    [Option("use_chat_template", "Render rows with the chat template; pt sets false.", OptionSection.Template)]
    public bool UseChatTemplate { get; init; } = true;

    [Option("padding_free", "Samples are joined in one row without padding: always so here.",
        OptionSection.Template, Effect = OptionEffect.SpeedOnly)]
    public bool PaddingFree { get; init; }

    [Option("padding_side", "Side of padding; nothing is padded here.",
        OptionSection.Template, Choices = "left|right", Effect = OptionEffect.SpeedOnly)]
    public string PaddingSide { get; init; } = "right";

    [Option("agent_template", "How tools are written.", OptionSection.Template, DefaultFrom = "the template")]
    public string? AgentTemplate { get; init; }

    [Option("response_prefix", "Text put before each generated answer (inference).", OptionSection.Template, DefaultFrom = "the template")]
    public string? ResponsePrefix { get; init; }

    [Option("template_backend", "swift: built-in templates; jinja: the template of the tokenizer (inference).", OptionSection.Template,
        Choices = "swift|jinja")]
    public string TemplateBackend { get; init; } = "swift";

    [Option("enable_thinking", "Thinking mode of hybrid models such as Qwen3.", OptionSection.Template, DefaultFrom = "the template")]
    public bool? EnableThinking { get; init; }

    [Option("date_string",
        "Date in the system block of Llama 3.1 and later, e.g. \"26 Jul 2024\"; fixed, so that data are the same on any day.",
        OptionSection.Template)]
    public string DateString { get; init; } = "26 Jul 2024";

    [Option("max_pixels", "Largest image, in pixels.", OptionSection.Template)]
    public int? MaxPixels { get; init; }

    [Option("norm_bbox", "How boxes are scaled.", OptionSection.Template, Choices = "norm1000|none")]
    public string? NormBbox { get; init; }

    [Option("sequence_parallel_size", "Sequence split of the base trainer; --context_parallel_size is what counts here.",
        OptionSection.Template)]
    public int SequenceParallelSize { get; init; } = 1;
}
