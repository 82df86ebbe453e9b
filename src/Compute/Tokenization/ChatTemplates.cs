using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// All chat templates, one record each; a new one is one record here. Which one a model gets is in <see cref="ChatTemplateChooser"/>.
/// </summary>
public static class ChatTemplates
{
    private const string EmptyThink = "<think>\n\n</think>\n\n";

    /// <summary>The family of ChatML: Qwen and those who took its markers.</summary>
    private static readonly ChatTemplate ChatMl = new()
    {
        Name = "chatml",
        Prefix = "",
        SystemPrefix = "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",
        Prompt = "<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",
        Separator = "<|im_end|>\n",
        Suffix = "<|im_end|>",
        AutoBos = true,
    };

    private static readonly ChatTemplate Qwen = ChatMl with
    {
        Name = "qwen",
        DefaultSystem = "You are a helpful assistant.",
        StopWords = ["<|endoftext|>", "<|im_end|>"],
        AgentTemplate = "hermes",
        AutoBos = false,
    };

    private static readonly ChatTemplate Qwen3 = Qwen with
    {
        Name = "qwen3",
        DefaultSystem = null,
        NonThinkingPrefix = EmptyThink,
        HistoryThinking = HistoryThinking.Remove,
    };

    private static readonly ChatTemplate Llama3 = new()
    {
        Name = "llama3",
        Prefix = "<|begin_of_text|>",
        SystemPrefix = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{{SYSTEM}}<|eot_id|>",
        Prompt = "<|start_header_id|>user<|end_header_id|>\n\n{{QUERY}}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        Separator = "<|eot_id|>",
        Suffix = "<|eot_id|>",
        StopWords = ["<|end_of_text|>"],
        AgentTemplate = "llama3",
    };

    /// <summary>Llama 3.1, 3.2 and 3.3: the system block with the dates is always there.</summary>
    private const string Llama32System =
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: {{DATE}}\n\n";

    /// <summary>All templates in the order of the documentation.</summary>
    public static IReadOnlyList<ChatTemplate> All { get; } =
    [
        Qwen,
        Qwen with
        {
            Name = "qwen2_5",
            DefaultSystem = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        },
        Qwen with
        {
            Name = "qwen2_5_math",
            DefaultSystem = "Please reason step by step, and put your final answer within \\boxed{}.",
        },
        Qwen with
        {
            Name = "qwq",
            DefaultSystem = null,
            ResponsePrefix = "<think>\n",
            HistoryThinking = HistoryThinking.Remove,
        },
        Qwen3,
        Qwen3 with { Name = "qwen3_thinking", NonThinkingPrefix = null, ResponsePrefix = "<think>\n" },
        Qwen3 with { Name = "qwen3_nothinking", NonThinkingPrefix = null, HistoryThinking = HistoryThinking.Keep },
        new()
        {
            Name = "llama",
            Prefix = "<s>[INST] ",
            SystemPrefix = "<s>[INST] <<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n",
            Prompt = "{{QUERY}} [/INST]",
            Separator = "</s><s>[INST] ",
            Suffix = "</s>",
            DefaultSystem =
                "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
                + "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
                + "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
                + "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
                + "not correct. "
                + "If you don't know the answer to a question, please don't share false information.",
        },
        Llama3,
        Llama3 with
        {
            Name = "llama3_2",
            Prefix = Llama32System + "<|eot_id|>",
            SystemPrefix = Llama32System + "{{SYSTEM}}<|eot_id|>",
        },
        new()
        {
            Name = "deepseek",
            Prefix = "{{BOS}}",
            SystemPrefix = "{{BOS}}{{SYSTEM}}\n\n",
            Prompt = "User: {{QUERY}}\n\nAssistant:",
            Separator = "{{EOS}}",
            Suffix = "{{EOS}}",
        },
        new()
        {
            Name = "deepseek_r1",
            Prefix = "<｜begin▁of▁sentence｜>",
            SystemPrefix = "<｜begin▁of▁sentence｜>{{SYSTEM}}",
            Prompt = "<｜User｜>{{QUERY}}<｜Assistant｜>",
            Separator = "<｜end▁of▁sentence｜>",
            Suffix = "<｜end▁of▁sentence｜>",
            ResponsePrefix = "<think>\n",
            HistoryThinking = HistoryThinking.Cut,
        },
        ChatMl,
        new()
        {
            // Plain text for pre-training: no markers, no system prompt, the last round only.
            Name = "default",
            Prefix = "",
            Prompt = "{{QUERY}}",
            Suffix = "{{EOS}}",
            AutoBos = true,
        },
    ];

    /// <summary>The template of a name. Throws <see cref="ConfigException"/> TPL001 with the nearest name for an unknown one.</summary>
    public static ChatTemplate Get(string name)
    {
        foreach (var template in All)
        {
            if (template.Name == name)
                return template;
        }

        var nearest = All.MinBy(template => EditDistance(name, template.Name));
        throw new ConfigException("TPL001",
            $"template = '{name}' is not known; did you mean '{nearest?.Name}'? Known: {string.Join(", ", All.Select(t => t.Name))}.");
    }

    /// <summary>The template of a model, see <see cref="ChatTemplateChooser"/>.</summary>
    public static ChatTemplate ForModel(string architecture, string modelType, string? modelName, ITokenizer tokenizer) =>
        ChatTemplateChooser.Choose(architecture, modelType, modelName, tokenizer);

    /// <summary>Levenshtein distance by rows.</summary>
    private static int EditDistance(string a, string b)
    {
        var row = Enumerable.Range(0, b.Length + 1).ToArray();
        for (var i = 1; i <= a.Length; i++)
        {
            var diagonal = row[0];
            row[0] = i;
            for (var j = 1; j <= b.Length; j++)
            {
                var change = diagonal + (char.ToLowerInvariant(a[i - 1]) == char.ToLowerInvariant(b[j - 1]) ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.Min(change, 1 + Math.Min(row[j], row[j - 1]));
            }
        }

        return row[b.Length];
    }
}
