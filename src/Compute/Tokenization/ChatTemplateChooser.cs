using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// Which template a model gets when none is named. The model type decides where it is clear; classes that several families share
/// (LlamaForCausalLM, Qwen2ForCausalLM) are told apart by the special tokens of the tokenizer and, last, by the name of the model or
/// folder.
/// </summary>
public static class ChatTemplateChooser
{
    /// <summary>The template for a model. Throws <see cref="ConfigException"/> TPL001 when none fits.</summary>
    /// <param name="architecture">First entry of <c>architectures</c> in config.json, such as <c>Qwen3ForCausalLM</c>.</param>
    /// <param name="modelType"><c>model_type</c> of config.json, such as <c>qwen3</c>; may be empty.</param>
    /// <param name="modelName">Name of the model or its folder; null when unknown.</param>
    /// <param name="tokenizer">Its special tokens tell families apart.</param>
    public static ChatTemplate Choose(string architecture, string modelType, string? modelName, ITokenizer tokenizer)
    {
        var name = (modelName ?? "").ToLowerInvariant().Replace('_', '-');
        var template = (architecture, modelType) switch
        {
            ("Qwen3ForCausalLM" or "Qwen3MoeForCausalLM", _) or (_, "qwen3" or "qwen3_moe") => ForQwen3(name),
            ("Qwen2MoeForCausalLM", _) or (_, "qwen2_moe") => "qwen",
            ("Qwen2ForCausalLM", _) or (_, "qwen2") => ForQwen2(name, tokenizer),
            ("LlamaForCausalLM", _) or (_, "llama") => ForLlama(tokenizer),
            _ => null,
        };
        return template is not null
            ? ChatTemplates.Get(template)
            : throw new ConfigException("TPL001",
                $"No chat template is known for architecture '{architecture}' (model_type '{modelType}') with this tokenizer; "
                + $"name one with --template: {string.Join(", ", ChatTemplates.All.Select(t => t.Name))}.");
    }

    /// <summary>The 2507 releases split the hybrid model into a thinking and a non-thinking one with the same tokenizer.</summary>
    private static string ForQwen3(string name)
    {
        if (name.Contains("thinking-2507", StringComparison.Ordinal))
            return "qwen3_thinking";
        return name.Contains("instruct-2507", StringComparison.Ordinal) ? "qwen3_nothinking" : "qwen3";
    }

    private static string ForQwen2(string name, ITokenizer tokenizer)
    {
        if (Has(tokenizer, "<｜User｜>"))
            return "deepseek_r1";
        if (name.Contains("qwq", StringComparison.Ordinal))
            return "qwq";
        if (name.Contains("qwen2.5-math", StringComparison.Ordinal) || name.Contains("qwen2-5-math", StringComparison.Ordinal))
            return "qwen2_5_math";
        if (name.Contains("qwen2.5", StringComparison.Ordinal) || name.Contains("qwen2-5", StringComparison.Ordinal))
            return "qwen2_5";
        if (name.Contains("qwen1.5", StringComparison.Ordinal) || name.Contains("qwen2-", StringComparison.Ordinal))
            return "qwen";

        // Qwen2 has three added tokens; the tool tokens came with Qwen2.5.
        var isQwen2 = tokenizer.VocabSize == 151_646;
        return isQwen2 ? "qwen" : "qwen2_5";
    }

    private static string? ForLlama(ITokenizer tokenizer)
    {
        if (Has(tokenizer, "<｜User｜>"))
            return "deepseek_r1";
        if (Has(tokenizer, "<|start_header_id|>"))
            return Has(tokenizer, "<|eom_id|>") || Has(tokenizer, "<|python_tag|>") ? "llama3_2" : "llama3";
        if (Has(tokenizer, "<|im_start|>"))
            return "chatml";
        if (Has(tokenizer, "<｜begin▁of▁sentence｜>"))
            return "deepseek";
        return Has(tokenizer, "<s>") && Has(tokenizer, "</s>") ? "llama" : null;
    }

    private static bool Has(ITokenizer tokenizer, string token) => tokenizer.TokenToId(token) is not null;
}
