using System.Text.Json;
using System.Text.Json.Serialization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

public sealed class TemplateRendererTests
{
    private const string EmptyThink = "<think>\n\n</think>\n\n";

    /// <summary>Rows of chat-templates.json: what Hugging Face's own templates render.</summary>
    public static TheoryData<string, int> HuggingFaceRows
    {
        get
        {
            var rows = new TheoryData<string, int>();
            foreach (var (name, list) in ReadHuggingFace())
            {
                for (var i = 0; i < list.Count; i++)
                    rows.Add(name, i);
            }

            return rows;
        }
    }

    [Theory]
    [MemberData(nameof(HuggingFaceRows))]
    public void Render_HuggingFaceRow_EqualExceptForTheDocumentedDifferences(string name, int index)
    {
        var row = ReadHuggingFace()[name][index];
        var tokenizer = TestTokenizers.Get(name);

        // The tokenizer file of llama3_1 carries the Llama 3 template, without the dates of the later ones.
        var template = ChatTemplates.Get(name == "qwen3" ? "qwen3" : "llama3");
        if (row.AddGenerationPrompt)
        {
            var options = new PromptOptions(EnableThinking: row.EnableThinking);
            Assert.Equal(row.Rendered, Join(TemplateRenderer.RenderPrompt(template, row.Conversation, options)));
            var encoder = new ConversationEncoder(tokenizer, template, new RenderOptions(null, LossScale.Default), ChatTemplate.DefaultDate);
            Assert.Equal(row.Ids, encoder.EncodePrompt(row.Conversation, options));
            return;
        }

        var expected = row.Rendered;
        var expectedIds = row.Ids;
        if (name == "qwen3")
        {
            // Differences with tests of their own below: the last newline, and the empty think block in front of the last answer.
            Assert.EndsWith("<|im_end|>\n", expected, StringComparison.Ordinal);
            expected = expected[..^1];
            if (!row.Messages[^1].Content.Contains("</think>", StringComparison.Ordinal))
                expected = expected.Replace(EmptyThink, "", StringComparison.Ordinal);
            expectedIds = tokenizer.Encode(expected);
        }

        Assert.Equal(expected, Join(TemplateRenderer.Render(template, row.Conversation, new RenderOptions(null, LossScale.All))));
        var ids = new ConversationEncoder(tokenizer, template, new RenderOptions(null, LossScale.Default), ChatTemplate.DefaultDate).Encode(row.Conversation).Ids;
        Assert.Equal(expectedIds, ids);
    }

    [Fact]
    public void Difference_Qwen_NoNewlineAfterTheLastMarker() =>
        Assert.EndsWith("B<|im_end|>", Training("qwen2_5", Talk(null, "A", "B")), StringComparison.Ordinal);

    [Fact]
    public void Difference_Qwen_EmptySystemRemovesTheBlock() =>
        Assert.Equal("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>", Training("qwen2_5", Talk("", "A", "B")));

    [Fact]
    public void Difference_Qwen3_TrainingAnswerWithoutThinkIsLeftAsItIs() =>
        Assert.DoesNotContain("<think>", Training("qwen3", Talk(null, "A", "B")), StringComparison.Ordinal);

    [Fact]
    public void Difference_Qwen3_TrainingKeepsThinkOfEarlierRounds() =>
        Assert.Contains("<think>\nr\n</think>\n\nB<|im_end|>", Training("qwen3", Talk(null, "A", "<think>\nr\n</think>\n\nB", "C", "D")), StringComparison.Ordinal);

    [Fact]
    public void Difference_Llama3_ContentsAreNotTrimmed() =>
        Assert.Equal(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n S <|eot_id|><|start_header_id|>user<|end_header_id|>\n\n A\n<|eot_id|>"
            + "<|start_header_id|>assistant<|end_header_id|>\n\n\tB <|eot_id|>",
            Training("llama3", Talk(" S ", " A\n", "\tB ")));

    [Fact]
    public void Difference_Llama32_DateIsAParameterWithAFixedDefault()
    {
        var tokenizer = TestTokenizers.Get("llama3_1");
        Assert.Contains("Today Date: 26 Jul 2024\n\n<|eot_id|>", Rendered(ChatTemplate.DefaultDate, Talk(null, "A", "B")), StringComparison.Ordinal);
        Assert.Equal(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 01 Jan 2030\n\nS<|eot_id|>"
            + "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>",
            Rendered("01 Jan 2030", Talk("S", "A", "B")));

        string Rendered(string date, Conversation conversation) =>
            Join(TemplateRenderer.Render(ChatTemplates.Get("llama3_2").Bind(tokenizer, date), conversation, new RenderOptions(null, LossScale.Default)));
    }

    [Fact]
    public void Difference_DeepseekR1_TrainingKeepsThinkOfEveryAnswer() =>
        Assert.Equal("<｜begin▁of▁sentence｜>S<｜User｜>A<｜Assistant｜><think>\nr\n</think>\n\nB<｜end▁of▁sentence｜>",
            Training("deepseek_r1", Talk("S", "A", "<think>\nr\n</think>\n\nB")));

    [Fact]
    public void Difference_DeepseekR1_PromptOpensAThinkBlock() =>
        Assert.Equal("<｜begin▁of▁sentence｜><｜User｜>A<｜Assistant｜>\n\nB<｜end▁of▁sentence｜><｜User｜>C<｜Assistant｜><think>\n",
            Prompt("deepseek_r1", Talk(null, "A", "<think>\nr\n</think>\n\nB", "C"), new PromptOptions()));

    [Fact]
    public void Render_Qwen25_CutsWhereTheWeightChanges()
    {
        var pieces = TemplateRenderer.Render(ChatTemplates.Get("qwen2_5"), Talk("S", "A", "B", "C", "D"), new RenderOptions(null, LossScale.Default));
        Assert.Equal(
            [
                new TextPiece("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", 0f),
                new TextPiece("B", 1f),
                new TextPiece("<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n", 0f),
                new TextPiece("D<|im_end|>", 1f),
            ],
            pieces);
    }

    [Theory]
    [InlineData("row", "option", "row")]
    [InlineData(null, "option", "option")]
    [InlineData(null, null, "You are a helpful assistant.")]
    [InlineData("", "option", null)]
    [InlineData(null, "", null)]
    public void Render_System_RowBeforeOptionBeforeDefault(string? row, string? option, string? expected)
    {
        var pieces = TemplateRenderer.Render(ChatTemplates.Get("qwen"), Talk(row, "A", "B"), new RenderOptions(option, LossScale.Default));
        var block = expected is null ? "" : $"<|im_start|>system\n{expected}<|im_end|>\n";
        Assert.Equal(block + "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", pieces[0].Text);
    }

    [Fact]
    public void Render_LeadingSystemMessage_CountsAsRowSystem()
    {
        var messages = new[] { new ChatMessage("system", "S"), new ChatMessage("user", "A"), new ChatMessage("assistant", "B") };
        Assert.StartsWith("<|im_start|>system\nS<|im_end|>", Training("qwen", new Conversation(null, messages)), StringComparison.Ordinal);
        Assert.StartsWith("<|im_start|>system\nT<|im_end|>", Training("qwen", new Conversation("T", messages)), StringComparison.Ordinal);
    }

    [Fact]
    public void Render_PlaceholdersInContent_StayAsTheyAre() =>
        Assert.Equal(
            "<|im_start|>system\n{{QUERY}}<|im_end|>\n<|im_start|>user\n{{SYSTEM}}{{EOS}}<|im_end|>\n<|im_start|>assistant\n{{QUERY}}<|im_end|>",
            Training("qwen", Talk("{{QUERY}}", "{{SYSTEM}}{{EOS}}", "{{QUERY}}")));

    [Fact]
    public void Render_SystemWithoutPlace_IsTpl002()
    {
        Assert.Equal("TPL002", Code(() => Training("default", Talk("S", "A", "B"))));
        Assert.Equal("TPL002",
            Code(() => TemplateRenderer.Render(ChatTemplates.Get("default"), Talk(null, "A", "B"), new RenderOptions("S", LossScale.All))));
        Assert.Equal("AB{{EOS}}", Training("default", Talk("", "A", "B")));
    }

    [Theory]
    [InlineData("")]
    [InlineData("system")]
    [InlineData("user")]
    [InlineData("user user assistant")]
    [InlineData("user assistant user")]
    [InlineData("user system assistant")]
    [InlineData("user tool assistant")]
    [InlineData("user bot")]
    public void Render_MessagesOutOfOrder_IsTpl003(string roles)
    {
        var messages = roles.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(role => new ChatMessage(role, "x")).ToList();
        Assert.Equal("TPL003", Code(() => Training("qwen", new Conversation(null, messages))));
    }

    [Fact]
    public void Render_ConsecutiveAssistantMessages_AreMerged()
    {
        var messages = new[] { new ChatMessage("user", "A"), new ChatMessage("assistant", "B"), new ChatMessage("assistant", "C") };
        var pieces = TemplateRenderer.Render(ChatTemplates.Get("qwen3"), new Conversation(null, messages), new RenderOptions(null, LossScale.Default));
        Assert.Equal("BC<|im_end|>", pieces[^1].Text);
    }

    [Fact]
    public void Render_ConversationStartingWithAssistant_GetsAnEmptyQuestion() =>
        Assert.Equal("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nB<|im_end|>",
            Training("qwen3", new Conversation(null, [new ChatMessage("assistant", "B")])));

    [Theory]
    [InlineData("qwen3", null, null, "")]
    [InlineData("qwen3", null, true, "")]
    [InlineData("qwen3", null, false, EmptyThink)]
    [InlineData("qwen3", "<think>\n", false, "<think>\n")]
    [InlineData("qwen3_thinking", null, null, "<think>\n")]
    [InlineData("qwen3_nothinking", null, false, "")]
    [InlineData("qwq", null, null, "<think>\n")]
    [InlineData("deepseek_r1", "", null, "")]
    [InlineData("qwen2_5", null, false, "")]
    public void BeginningOfAnswer_PrefixBeforeSwitchBeforeTemplate(string template, string? prefix, bool? thinks, string expected) =>
        Assert.Equal(expected, TemplateRenderer.BeginningOfAnswer(ChatTemplates.Get(template), new PromptOptions(null, prefix, thinks)));

    [Fact]
    public void BeginningOfAnswer_NoThinkingWhereAlwaysThinking_IsTpl006() =>
        Assert.Equal("TPL006", Code(() => Prompt("qwq", Talk(null, "A"), new PromptOptions(EnableThinking: false))));

    [Theory]
    [InlineData("qwen3", "B")]
    [InlineData("qwq", "B")]
    [InlineData("deepseek_r1", "\n\nB")]
    [InlineData("qwen2_5", "x<think>\nr\n</think>\n\nB")]
    public void RenderPrompt_HistoryWithThink_IsCutByTheTemplatesRule(string template, string expected)
    {
        var prompt = TemplateRenderer.RenderPrompt(ChatTemplates.Get(template), Talk("", "A", "x<think>\nr\n</think>\n\nB", "C"), new PromptOptions());
        Assert.Equal(expected, prompt[1].Text);
    }

    [Fact]
    public void RenderPrompt_LastMessageOfAssistant_IsContinued() =>
        Assert.Equal("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n<think>\nr", Prompt("qwen3", Talk(null, "A", "<think>\nr"), new PromptOptions()));

    [Fact]
    public void RenderPrompt_SystemOption_IsUsed() =>
        Assert.StartsWith("<|im_start|>system\nS<|im_end|>\n", Prompt("qwen3", Talk(null, "A"), new PromptOptions("S")), StringComparison.Ordinal);

    private static string Code(Func<object> action) => Assert.Single(Assert.Throws<ConfigException>(action).Errors).Code;

    private static string Training(string template, Conversation conversation) =>
        Join(TemplateRenderer.Render(ChatTemplates.Get(template), conversation, new RenderOptions(null, LossScale.Default)));

    private static string Prompt(string template, Conversation conversation, PromptOptions options) =>
        Join(TemplateRenderer.RenderPrompt(ChatTemplates.Get(template), conversation, options));

    private static string Join(IReadOnlyList<TextPiece> pieces) => string.Concat(pieces.Select(piece => piece.Text));

    /// <summary>A conversation whose messages take turns, the user first.</summary>
    private static Conversation Talk(string? system, params string[] contents) =>
        new(system, [.. contents.Select((content, i) => new ChatMessage(i % 2 == 0 ? "user" : "assistant", content))]);

    private static Dictionary<string, List<HuggingFaceRow>> ReadHuggingFace() =>
        JsonSerializer.Deserialize<Dictionary<string, List<HuggingFaceRow>>>(File.ReadAllText(Repository.Asset("tokenizers", "chat-templates.json")),
            JsonSerializerOptions.Web) ?? [];

    private sealed record HuggingFaceRow(
        List<ChatMessage> Messages,
        [property: JsonPropertyName("add_generation_prompt")] bool AddGenerationPrompt,
        [property: JsonPropertyName("enable_thinking")] bool? EnableThinking,
        string Rendered,
        int[] Ids)
    {
        public Conversation Conversation => new(null, Messages);
    }
}
