using System.Text.Json.Nodes;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Tokenization;

/// <summary>A byte tokenizer with the markers of all templates; it adds BOS.</summary>
internal static class TemplateTokenizer
{
    public static HfTokenizer Create(params string[] markers)
    {
        using var folder = new TokenizerFolder();
        var bos = folder.Add("<bos>");
        foreach (var marker in markers)
            folder.Add(marker);
        folder.Json["post_processor"] = new JsonObject
        {
            ["type"] = "TemplateProcessing",
            ["single"] = JsonNode.Parse("""[{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]"""),
            ["special_tokens"] = new JsonObject { ["<bos>"] = new JsonObject { ["ids"] = new JsonArray(bos) } },
        };
        folder.WriteFile("tokenizer_config.json", """{"bos_token": "<bos>", "eos_token": "<eos>"}""");
        return folder.Load();
    }

    public static Lazy<HfTokenizer> ForAllTemplates { get; } = new(() => Create(
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"));
}
