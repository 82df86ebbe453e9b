using Megatron.Compute.Inference;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Inference;

public sealed class AnswerTextTests
{
    private static readonly HfTokenizer Tokenizer = HfTokenizer.Load(Repository.Asset("tokenizers", "tiny"));

    [Theory]
    [InlineData("plain text", "plain text", false)]
    [InlineData("one</END>two", "one", true)]
    [InlineData("one</EN two", "one</EN two", false)]
    [InlineData("say STOP now", "say STOP", true)]
    [InlineData("", "", false)]
    public void Add_StopTexts_EndingIsCutAndWordStays(string text, string expected, bool ends)
    {
        var stops = StopRules.None with { Endings = ["</END>"], Words = ["STOP"] };
        var shown = "";
        var answer = new AnswerText(Tokenizer, stops, "> ", piece => shown += piece);
        var ended = Tokenizer.Encode(text).Any(answer.Add);
        Assert.Equal(ends, ended);
        var whole = answer.Finish();
        Assert.Equal("> " + expected, whole);
        Assert.Equal(whole, shown);
    }

    [Fact]
    public void Add_PartOfACharacter_IsNotShown()
    {
        var pieces = new List<string>();
        var answer = new AnswerText(Tokenizer, StopRules.None, "", pieces.Add);
        foreach (var id in Tokenizer.Encode("鯨🐋")) answer.Add(id);
        Assert.Equal("鯨🐋", answer.Finish());
        Assert.DoesNotContain(pieces, piece => piece.Contains('\uFFFD'));
    }

    [Fact]
    public void Of_ChatTemplate_MarkersBecomeIds()
    {
        var template = ChatTemplates.Get("qwen3").Bind(Tokenizer, ChatTemplate.DefaultDate);
        var rules = StopRules.Of(Tokenizer, template, [17], ["</s>"]);
        Assert.Contains(17, rules.Ids);
        Assert.Contains(Tokenizer.TokenToId("<|im_end|>")!.Value, rules.Ids); // the tiny tokenizer has it
        Assert.Equal(["</s>"], rules.Words);
        Assert.Empty(rules.Endings);
    }
}
