using System.Text.Json;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Data;

/// <summary>Rows with tools: from the forms that data sets have to the text and mask of the hermes agent template.</summary>
public sealed class ToolRowTests : IDisposable
{
    private const string EmptyThink = "<think>\n\n</think>\n\n";
    private const string Tool = """{"name":"clock","description":"d","parameters":{"type":"object","properties":{}}}""";

    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    public static TheoryData<int> HuggingFaceRows => [.. Enumerable.Range(0, ReadHuggingFace().Count)];

    /// <summary>hermes-tools.json: what Qwen3's own template renders (Jinja2 3.1.6, settings of transformers).</summary>
    [Theory]
    [MemberData(nameof(HuggingFaceRows))]
    public void Encode_OpenAiRow_IsWhatQwensTemplateWrites(int index)
    {
        var (row, rendered) = ReadHuggingFace()[index];
        // As for rows without tools: no newline after the last marker, no empty think block in front of the last answer.
        var expected = rendered[..^1];
        if (!row.Contains("</think>")) expected = expected.Replace(EmptyThink, "");
        Assert.Equal(expected, Text(row, "qwen3"));
    }

    [Fact]
    public void Encode_SwiftRow_IsTheSameAsOpenAi()
    {
        const string swift = """
            {"tools":"[{\"name\":\"clock\",\"description\":\"d\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}]","messages":[{"role":"user","content":"Time?"},{"role":"tool_call","content":"{\"name\": \"clock\", \"arguments\": {\"zone\": \"UTC\"}}"},{"role":"tool_response","content":"12:00"},{"role":"assistant","content":"Noon."}]}
            """;
        const string openAi = $$$"""
            {"tools":[{"type":"function","function":{{{Tool}}}}],"messages":[{"role":"user","content":"Time?"},{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"clock","arguments":"{\"zone\":\"UTC\"}"}}]},{"role":"tool","content":"12:00"},{"role":"assistant","content":"Noon."}]}
            """;
        Assert.Equal(Text(openAi, "qwen2_5"), Text(swift, "qwen2_5"));
        Assert.StartsWith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n", Text(swift, "qwen2_5"));
    }

    [Fact]
    public void Encode_Calls_AreLearnedAndResultsAreNot()
    {
        const string row = """
            {"messages":[{"role":"user","content":"Time?"},{"role":"tool_call","content":"{\"name\": \"clock\", \"arguments\": {}}"},{"role":"tool_response","content":"12:00"},{"role":"tool_response","content":"13:00"},{"role":"assistant","content":"Noon."}]}
            """;
        Assert.Matches("""^\[-100 \* \d+\]<tool_call>\n\{"name": "clock", "arguments": \{\}\}\n</tool_call><\|im_end\|>\[-100 \* \d+\]Noon\.<\|im_end\|>\[-100 \* 1\]$""", Learned(row));
        Assert.DoesNotContain("<tool_call>", Learned(row.Replace("{}}\"}", "{}}\",\"loss\":false}")));
    }

    [Theory]
    [InlineData("""{"tools":5,"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA003", "tools is a number")]
    [InlineData("""{"tools":["x"],"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA003", "tools[0] is a text that is not a JSON object")]
    [InlineData("""{"tools":[5],"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA003", "tools[0] is a number")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"tool_call","content":"clock"}]}""", "DATA003", "messages[1].content, a tool call,")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"tool_call","content":"{\"name\":\"clock\"}"}]}""", "DATA003", "name and arguments")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"","tool_calls":[{}]}]}""", "DATA003", "messages[1].tool_calls[0]")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"tool","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is the result of a tool, but no tool was called")]
    [InlineData("""{"messages":[{"role":"tool_response","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[0] is the result of a tool")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"tool_call","content":"{\"name\": \"c\", \"arguments\": \"\\ud800\"}"}]}""", "DATA006", "\\ud800")]
    public void Strict_BadTools_AreRefused(string row, string code, string expected)
    {
        var path = _folder.Write("rows.jsonl", row);
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path) with { Strict = true, AgentTemplate = "hermes" })).Errors[0];
        Assert.Equal(code, error.Code);
        Assert.Contains(expected, error.Message);
    }

    [Fact]
    public void Build_TemplateWithoutHermes_LeavesRowsWithToolsOutUnlessAsked()
    {
        const string rows = """
            {"messages":[{"role":"user","content":"Q"},{"role":"tool_call","content":"{\"name\": \"c\", \"arguments\": {}}"}]}
            {"query":"Q","response":"A"}
            """;
        var config = DataFolder.Config(_folder.Write("rows.jsonl", rows));
        Assert.Contains(DataFolder.Build(config).Report, line => line.Contains("TPL007"));
        Assert.Equal(2, DataFolder.Build(config with { AgentTemplate = "hermes" }).TrainSamples.Count);
    }

    [Fact]
    public void WriteValidationSplit_RowsWithTools_ComeBackAsTheSameSamples()
    {
        var rows = string.Join('\n', Enumerable.Range(0, 10).Select(i => $$$"""
            {"tools":[{{{Tool}}}],"messages":[{"role":"user","content":"Q{{{i}}}"},{"role":"tool_call","content":"{\"name\": \"clock\", \"arguments\": {\"n\": {{{i}}}}}"},{"role":"tool_response","content":"R"},{"role":"assistant","content":"A"}]}
            """));
        var config = DataFolder.Config(_folder.Write("rows.jsonl", rows)) with { SplitDatasetRatio = 0.3, AgentTemplate = "hermes" };
        var data = DataFolder.Build(config);
        data.WriteValidationSplit(_folder.PathOf("val.jsonl"));
        var again = DataFolder.Build(config with { Dataset = [_folder.PathOf("val.jsonl")], SplitDatasetRatio = 0, DatasetShuffle = false });
        Assert.Equal(data.ValidationSamples.Select(sample => sample.TokenIds), again.TrainSamples.Select(sample => sample.TokenIds));
    }

    private static List<(string Row, string Rendered)> ReadHuggingFace()
    {
        using var document = JsonDocument.Parse(File.ReadAllText(Repository.Asset("tokenizers", "hermes-tools.json")));
        return [.. document.RootElement.EnumerateArray().Select(item => (item.GetProperty("row").GetRawText(), item.GetProperty("rendered").GetString() ?? ""))];
    }

    private string Text(string row, string template)
    {
        var tokenizer = new TestTokenizer();
        var config = DataFolder.Config(_folder.Write("row.jsonl", row.ReplaceLineEndings(" "))) with { Strict = true };
        using var data = DatasetBuilder.Build(config, tokenizer, ChatTemplates.Get(template), tokenizer.VocabSize);
        return tokenizer.Decode(data.TrainSamples[0].TokenIds, skipSpecialTokens: false);
    }

    private string Learned(string row)
    {
        var tokenizer = new TestTokenizer();
        var config = DataFolder.Config(_folder.Write("row.jsonl", row)) with { Strict = true };
        using var data = DatasetBuilder.Build(config, tokenizer, ChatTemplates.Get("qwen3"), tokenizer.VocabSize);
        return SamplePrinter.LabelText(data.TrainSamples[0].Labels, tokenizer);
    }
}
