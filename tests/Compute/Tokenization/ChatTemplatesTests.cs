using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Tokenization;

public sealed class ChatTemplatesTests
{
    [Fact]
    public void Get_UnknownName_SuggestsTheNearest()
    {
        var error = Assert.Throws<ConfigException>(() => ChatTemplates.Get("qwen25")).Errors.Single();
        Assert.Equal("TPL001", error.Code);
        Assert.Contains("did you mean 'qwen2_5'", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void All_NamesAndParts_AreWellFormed()
    {
        Assert.Equal(
            ["qwen", "qwen2_5", "qwen2_5_math", "qwq", "qwen3", "qwen3_thinking", "qwen3_nothinking", "llama", "llama3", "llama3_2", "deepseek",
                "deepseek_r1", "chatml", "default"],
            ChatTemplates.All.Select(template => template.Name));
        foreach (var template in ChatTemplates.All)
        {
            Assert.Equal(2, template.Prompt.Split("{{QUERY}}").Length);
            Assert.True(template.SystemPrefix is null || template.SystemPrefix.Split("{{SYSTEM}}").Length == 2);
            Assert.NotEmpty(template.Suffix);
        }
    }

    [Theory]
    [InlineData("Qwen3ForCausalLM", "qwen3", "Qwen3-0.6B", "", "qwen3")]
    [InlineData("Qwen3MoeForCausalLM", "qwen3_moe", "Qwen3-30B-A3B-Thinking-2507", "", "qwen3_thinking")]
    [InlineData("Qwen3MoeForCausalLM", "qwen3_moe", "Qwen3-30B-A3B-Instruct-2507", "", "qwen3_nothinking")]
    [InlineData("Qwen2MoeForCausalLM", "qwen2_moe", null, "", "qwen")]
    [InlineData("Qwen2ForCausalLM", "qwen2", null, "<|im_start|>", "qwen2_5")]
    [InlineData("Qwen2ForCausalLM", "qwen2", "Qwen2-7B-Instruct", "<|im_start|>", "qwen")]
    [InlineData("Qwen2ForCausalLM", "qwen2", "Qwen2.5-Math-7B-Instruct", "<|im_start|>", "qwen2_5_math")]
    [InlineData("Qwen2ForCausalLM", "qwen2", "QwQ-32B", "<|im_start|>", "qwq")]
    [InlineData("Qwen2ForCausalLM", "qwen2", "renamed", "<｜User｜>", "deepseek_r1")]
    [InlineData("LlamaForCausalLM", "llama", null, "<｜User｜> <|begin_of_text|>", "deepseek_r1")]
    [InlineData("LlamaForCausalLM", "llama", null, "<|start_header_id|>", "llama3")]
    [InlineData("LlamaForCausalLM", "llama", null, "<|start_header_id|> <|eom_id|>", "llama3_2")]
    [InlineData("LlamaForCausalLM", "llama", "Yi", "<|im_start|>", "chatml")]
    [InlineData("LlamaForCausalLM", "llama", null, "<｜begin▁of▁sentence｜>", "deepseek")]
    [InlineData("LlamaForCausalLM", "", null, "<s> </s>", "llama")]
    public void ForModel_ByTypeThenTokensThenName(string architecture, string modelType, string? name, string tokens, string expected)
    {
        var tokenizer = TemplateTokenizer.Create(tokens.Split(' ', StringSplitOptions.RemoveEmptyEntries));
        Assert.Equal(expected, ChatTemplates.ForModel(architecture, modelType, name, tokenizer).Name);
    }

    [Theory]
    [InlineData("LlamaForCausalLM", "llama")]
    [InlineData("GptNeoXForCausalLM", "gpt_neox")]
    public void ForModel_NoneFits_AsksForTheOption(string architecture, string modelType)
    {
        var error = Assert.Throws<ConfigException>(() => ChatTemplates.ForModel(architecture, modelType, null, TemplateTokenizer.Create())).Errors.Single();
        Assert.Equal("TPL001", error.Code);
        Assert.Contains("--template", error.Message, StringComparison.Ordinal);
    }
}
