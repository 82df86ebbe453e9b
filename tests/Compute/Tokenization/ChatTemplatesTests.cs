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
}
