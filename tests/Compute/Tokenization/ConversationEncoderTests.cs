using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Tokenization;

public sealed class ConversationEncoderTests
{
    private static readonly Conversation TwoRounds = new(null,
    [
        new ChatMessage("user", "A"), new ChatMessage("assistant", "<think>\n\n</think>\n\nB"),
        new ChatMessage("user", "C"), new ChatMessage("assistant", "D"),
    ]);

    /// <summary>Each line of loss-masks.txt: template, loss scale, text with the learned tokens in brackets.</summary>
    public static TheoryData<string, string, string> LossMasks
    {
        get
        {
            var rows = new TheoryData<string, string, string>();
            foreach (var line in File.ReadLines(Repository.Asset("tokenizers", "loss-masks.txt")).Where(line => line[0] != '#'))
            {
                var parts = line.Split(" | ");
                rows.Add(parts[0], parts[1], parts[2]);
            }

            return rows;
        }
    }

    [Theory]
    [MemberData(nameof(LossMasks))]
    public void Encode_EveryTemplateAndLossScale_LearnsWhatTheTableSays(string template, string scale, string expected)
    {
        var tokenizer = TemplateTokenizer.ForAllTemplates.Value;
        Assert.Equal(expected, Learned(tokenizer, Encode(tokenizer, template, TwoRounds, LossScales.Parse(scale))));
    }

    [Fact]
    public void LossMasks_Table_HasEveryTemplateWithEveryScale()
    {
        var expected = ChatTemplates.All.SelectMany(template => LossScales.Names.Select(scale => (template.Name, scale)));
        Assert.Equal(expected, LossMasks.Select(row => (row.Data.Item1, row.Data.Item2)));
    }

    [Theory]
    [InlineData("qwen3", "<|im_start|>user⏎A<|im_end|>⏎<|im_start|>assistant⏎B<|im_end|>⏎<|im_start|>user⏎C<|im_end|>⏎<|im_start|>assistant⏎⟦D<|im_end|>⟧")]
    [InlineData("deepseek", "<bos>User: A⏎⏎Assistant:B<eos>User: C⏎⏎Assistant:⟦D<eos>⟧")]
    public void Encode_MessageWithoutLoss_IsNotLearnedNorItsEndMarker(string template, string expected)
    {
        var tokenizer = TemplateTokenizer.ForAllTemplates.Value;
        var conversation = Talk(("A", "B", false), ("C", "D", null));
        Assert.Equal(expected, Learned(tokenizer, Encode(tokenizer, template, conversation, LossScale.Default)));
    }

    [Fact]
    public void Encode_LastMessageWithoutLoss_SuffixIsNotLearnedButTheMarkerBeforeIs()
    {
        var tokenizer = TemplateTokenizer.ForAllTemplates.Value;
        Assert.Equal("<bos>User: A⏎⏎Assistant:⟦B<eos>⟧User: C⏎⏎Assistant:D<eos>",
            Learned(tokenizer, Encode(tokenizer, "deepseek", Talk(("A", "B", null), ("C", "D", false)), LossScale.Default)));
    }

    [Fact]
    public void Encode_MessageWithLossUnderLastRound_IsLearned()
    {
        var tokenizer = TemplateTokenizer.ForAllTemplates.Value;
        Assert.Equal("<bos>User: A⏎⏎Assistant:⟦B<eos>⟧User: C⏎⏎Assistant:⟦D<eos>⟧",
            Learned(tokenizer, Encode(tokenizer, "deepseek", Talk(("A", "B", true), ("C", "D", null)), LossScale.LastRound)));
    }

    [Fact]
    public void Encode_PiecesOfDifferentWeight_AreTokenizedApart()
    {
        // As one string "Assistant:hell" could merge across the border; ": hell" shows it with the token "Ġhell".
        using var folder = new TokenizerFolder();
        folder.WriteFile("tokenizer_config.json", """{"eos_token": "<eos>"}""");
        var tokenizer = folder.Load();
        var spaced = ChatTemplates.Get("deepseek") with { Prompt = "{{QUERY}} " };
        var apart = Encode(tokenizer, spaced, Talk(("A", "hell", null)), LossScale.Default);
        var joined = Encode(tokenizer, spaced, Talk(("A", "hell", null)), LossScale.All);
        Assert.Equal(["A", "Ġ", "hell", "<eos>"], apart.Ids.Select(tokenizer.IdToToken));
        Assert.Equal(["A", "Ġhell", "<eos>"], joined.Ids.Select(tokenizer.IdToToken));
    }

    [Theory]
    [InlineData("qwen3", "⟦Plain text.<|im_end|>⟧")]
    [InlineData("llama3_1", "⟦<|begin_of_text|>Plain text.<|eot_id|>⟧")]
    public void Encode_TextRowWithGenerationTemplate_IsBosTextEos(string folder, string expected)
    {
        var tokenizer = TestTokenizers.Get(folder);
        var row = new Conversation(null, [new ChatMessage("assistant", "Plain text.")]);
        Assert.Equal(expected, Learned(tokenizer, Encode(tokenizer, "default", row, LossScale.All)));
    }

    [Fact]
    public void Encode_GenerationTemplateWithoutEos_IsTpl004()
    {
        using var folder = new TokenizerFolder();
        var tokenizer = folder.Load();
        Assert.Equal("TPL004", Code(() => Encode(tokenizer, "default", TwoRounds, LossScale.All)));
    }

    [Fact]
    public void Encode_EmptyEarlierAnswer_MarkerIsNotLearned()
    {
        // Nothing before the marker is learned, so it does not belong to a learned answer: the rule looks at tokens.
        var tokenizer = TemplateTokenizer.ForAllTemplates.Value;
        Assert.Equal("<bos>User: A⏎⏎Assistant:<eos>User: C⏎⏎Assistant:⟦D<eos>⟧",
            Learned(tokenizer, Encode(tokenizer, "deepseek", Talk(("A", "", null), ("C", "D", null)), LossScale.Default)));
    }

    [Fact]
    public void Parse_UnknownLossScale_IsTpl005() => Assert.Equal("TPL005", Code(() => LossScales.Parse("react")));

    private static string Code(Func<object> action) => Assert.Single(Assert.Throws<ConfigException>(action).Errors).Code;

    private static Conversation Talk(params (string Query, string Answer, bool? Loss)[] rounds) =>
        new(null, [.. rounds.SelectMany(round => new[]
        {
            new ChatMessage("user", round.Query), new ChatMessage("assistant", round.Answer, round.Loss),
        })]);

    private static EncodedText Encode(ITokenizer tokenizer, string template, Conversation conversation, LossScale scale) =>
        Encode(tokenizer, ChatTemplates.Get(template), conversation, scale);

    private static EncodedText Encode(ITokenizer tokenizer, ChatTemplate template, Conversation conversation, LossScale scale) =>
        new ConversationEncoder(tokenizer, template, new RenderOptions(null, scale), ChatTemplate.DefaultDate).Encode(conversation);

    /// <summary>The text with its learned tokens in brackets.</summary>
    private static string Learned(ITokenizer tokenizer, EncodedText encoded)
    {
        Assert.Equal(encoded.Ids.Length, encoded.Weights.Length);
        var text = new StringBuilder();
        for (var start = 0; start < encoded.Ids.Length;)
        {
            var end = start;
            while (end < encoded.Ids.Length && encoded.Weights[end] == encoded.Weights[start])
                end++;
            var part = tokenizer.Decode(encoded.Ids.AsSpan(start..end), skipSpecialTokens: false);
            text.Append(encoded.Weights[start] == 1f ? $"⟦{part}⟧" : part);
            start = end;
        }

        return text.Replace("\n", "⏎").ToString();
    }
}
