using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Tests.Data;

public sealed class SampleEncoderTests
{
    private const int Ignore = MicroBatch.IgnoreIndex;

    private static readonly Conversation PlainText = new(null, [new ChatMessage(ChatMessage.Assistant, "abcdefg")]);

    [Fact]
    public void Encode_ChatRow_ShiftsLabelsOntoTheTokenBefore()
    {
        var row = new Conversation("", [new ChatMessage(ChatMessage.User, "Q"), new ChatMessage(ChatMessage.Assistant, "AB")]);
        var sample = Assert.Single(Encoder("qwen2_5", LossScale.Default).Encode(row, "here").Samples);
        int[] prompt = [TestTokenizer.ImStart, .. Bytes("user\nQ"), TestTokenizer.ImEnd, '\n', TestTokenizer.ImStart, .. Bytes("assistant\n")];
        Assert.Equal([.. prompt, 'A', 'B', TestTokenizer.ImEnd], sample.TokenIds);
        Assert.Equal([.. Enumerable.Repeat(Ignore, prompt.Length - 1), 'A', 'B', TestTokenizer.ImEnd, Ignore], sample.Labels);
        Assert.Null(sample.LossWeights);
        Assert.Equal(3, sample.NumTargetTokens);
    }

    [Fact]
    public void Encode_PlainText_LearnsEveryTokenButTheFirst()
    {
        var sample = Assert.Single(Encoder("default", LossScale.All).Encode(PlainText, "here").Samples);
        Assert.Equal([.. Bytes("abcdefg"), TestTokenizer.EndOfText], sample.TokenIds);
        Assert.Equal([.. Bytes("bcdefg"), TestTokenizer.EndOfText, Ignore], sample.Labels);
    }

    [Theory]
    [InlineData(TruncationStrategy.Left, "defg$", "efg$_")]
    [InlineData(TruncationStrategy.Right, "abcde", "bcde_")]
    [InlineData(TruncationStrategy.Split, "abcde|fg$", "bcdef|g$_")]
    [InlineData(TruncationStrategy.Delete, "", "")]
    public void Encode_TooLong_FollowsTheStrategy(TruncationStrategy strategy, string ids, string labels)
    {
        var row = Encoder("default", LossScale.All, maxLength: 5, strategy).Encode(PlainText, "here");
        Assert.Equal(ids, string.Join('|', row.Samples.Select(sample => Text(sample.TokenIds))));
        Assert.Equal(labels, string.Join('|', row.Samples.Select(sample => Text(sample.Labels))));
        Assert.Equal(strategy != TruncationStrategy.Delete, row.WasCut);
        Assert.Equal(strategy == TruncationStrategy.Delete ? "DATA013" : null, row.Deleted?.Code);
    }

    [Fact]
    public void Encode_JustMaxLength_IsKeptWhole()
    {
        var row = Encoder("default", LossScale.All, maxLength: 8, TruncationStrategy.Delete).Encode(PlainText, "here");
        Assert.Equal(8, Assert.Single(row.Samples).Length);
        Assert.False(row.WasCut);
    }

    [Fact]
    public void Encode_AnswerCutOff_IsLeftOutBecauseAllLabelsAreMasked()
    {
        var row = new Conversation("", [new ChatMessage(ChatMessage.User, "a long question"), new ChatMessage(ChatMessage.Assistant, "A")]);
        var encoded = Encoder("qwen2_5", LossScale.Default, maxLength: 10, TruncationStrategy.Right).Encode(row, "here");
        Assert.Empty(encoded.Samples);
        Assert.Equal("DATA014", encoded.Deleted?.Code);
    }

    [Fact]
    public void Encode_TokenOutsideTheModel_IsFatal()
    {
        var encoded = Encoder("default", LossScale.All, modelVocab: 258).Encode(PlainText, "rows.jsonl:7");
        Assert.Equal("DATA022", encoded.Fatal?.Code);
        Assert.Contains("rows.jsonl:7: the tokenizer gives token id 258", encoded.Fatal?.Message);
    }

    [Fact]
    public void Encode_SystemWithoutAPlace_IsAProblemOfTheRow()
    {
        var encoded = Encoder("default", LossScale.All).Encode(new Conversation("S", PlainText.Messages), "here");
        Assert.Equal("TPL002", encoded.Problem?.Code);
    }

    private static SampleEncoder Encoder(string template, LossScale scale, int maxLength = 1000, TruncationStrategy strategy = TruncationStrategy.Delete,
        int modelVocab = 259) =>
        new(new ConversationEncoder(new TestTokenizer(), ChatTemplates.Get(template), new RenderOptions(null, scale), ChatTemplate.DefaultDate),
            maxLength, strategy, modelVocab);

    private static int[] Bytes(string text) => new TestTokenizer().Encode(text);

    private static string Text(int[] ids) =>
        string.Concat(ids.Select(id => id == Ignore ? "_" : id == TestTokenizer.EndOfText ? "$" : ((char)id).ToString()));
}
