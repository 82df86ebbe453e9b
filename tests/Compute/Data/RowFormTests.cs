namespace Megatron.Compute.Tests.Data;

/// <summary>Every row form of the reference, rendered with chatml so that the whole conversation shows.</summary>
public sealed class RowFormTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData("""{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"user","content":"R"},{"role":"assistant","content":"B"}]}""",
        "[system]S[user]Q[assistant]A[user]R[assistant]B")]
    [InlineData("""{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}],"system":"S"}""", "[system]S[user]Q[assistant]A")]
    [InlineData("""{"conversation":[{"human":"Q","assistant":"A"},{"human":"R","assistant":"B"}],"system":"S"}""", "[system]S[user]Q[assistant]A[user]R[assistant]B")]
    [InlineData("""{"instruction":"I","input":"N","output":"A"}""", "[user]I\nN[assistant]A")]
    [InlineData("""{"instruction":"I","input":"","output":"A"}""", "[user]I[assistant]A")]
    [InlineData("""{"instruction":"","input":"N","output":"A"}""", "[user]N[assistant]A")]
    [InlineData("""{"instruction":"I","input":null,"output":"A"}""", "[user]I[assistant]A")]
    [InlineData("""{"query":"R","response":"B","history":[["Q","A"]],"system":"S"}""", "[system]S[user]Q[assistant]A[user]R[assistant]B")]
    [InlineData("""{"query":"R","response":"B","history":"[[\"Q\",\"A\"]]"}""", "[user]Q[assistant]A[user]R[assistant]B")]
    [InlineData("""{"prompt":"Q","completion":"A"}""", "[user]Q[assistant]A")]
    [InlineData("""{"Question":"Q","Answer":"A"}""", "[user]Q[assistant]A")]
    [InlineData("""{"problem":"Q","solution":"A","system_prompt":"S"}""", "[system]S[user]Q[assistant]A")]
    [InlineData("""{"query":"Q","prompt":"ignored","response":"A"}""", "[user]Q[assistant]A")]
    [InlineData("""{"text":"T"}""", "[user][assistant]T")]
    [InlineData("""{"messages":[{"role":"assistant","content":"T"}]}""", "[user][assistant]T")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"assistant","content":"B"}]}""", "[user]Q[assistant]AB")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"bot","content":"A"},{"role":"user","content":"open"}]}""", "[user]Q[assistant]A")]
    [InlineData("""{"messages":[{"role":"user","content":[{"type":"text","text":"Q"},{"type":"text","text":"R"}]},{"role":"assistant","content":"A"}]}""", "[user]QR[assistant]A")]
    [InlineData("""{"messages":"[{\"role\":\"user\",\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"}]"}""", "[user]Q[assistant]A")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}],"response":"ignored"}""", "[user]Q[assistant]A")]
    [InlineData("""{"query":"\u4f60\ud83d\ude00","response":"好"}""", "[user]你😀[assistant]好")]
    [InlineData("""{"query":"Q","response":["only"]}""", "[user]Q[assistant]only")]
    public void Row_EachForm_BecomesTheConversation(string row, string expected)
    {
        var config = DataFolder.Config(_folder.Write("rows.jsonl", row)) with { System = "", Strict = true };
        Assert.Equal(expected, Compact(Assert.Single(DataFolder.Texts(config))));
    }

    [Fact]
    public void Row_ListOfAnswers_PicksOneByTheSeed()
    {
        var rows = string.Join('\n', Enumerable.Repeat("""{"query":"Q","response":["a","b","c"]}""", 60));
        var config = DataFolder.Config(_folder.Write("rows.jsonl", rows)) with { System = "" };
        var first = DataFolder.Texts(config);
        Assert.Equal(first, DataFolder.Texts(config));
        Assert.Equal(3, first.Distinct().Count());
        Assert.NotEqual(first, DataFolder.Texts(config with { DataSeed = 7 }));
    }

    [Fact]
    public void Row_LossOfAMessage_DecidesItsLabels()
    {
        var path = _folder.Write("rows.jsonl",
            """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A","loss":false},{"role":"user","content":"R"},{"role":"assistant","content":"B"}]}""");
        var sample = Assert.Single(DataFolder.Build(DataFolder.Config(path)).TrainSamples);
        Assert.Equal(['B', TestTokenizer.ImEnd], sample.Labels.Where(label => label >= 0).Take(2));
    }

    [Fact]
    public void Columns_Mapping_RenamesBeforeTheFormIsChosen()
    {
        var path = _folder.Write("rows.jsonl", """{"Frage":"Q","Antwort":"A","text":"not the answer"}""");
        var config = DataFolder.Config(path) with { System = "", Columns = """{"frage":"query","antwort":"response"}""" };
        Assert.Equal("[user]Q[assistant]A", Compact(DataFolder.Texts(config)[0]));
    }

    [Theory]
    [InlineData("zh", "我是小明，由甲训练")]
    [InlineData("en", "我是Bob，由A训练")]
    public void SelfCognition_Tag_ChoosesTheLanguage(string tag, string expected)
    {
        var path = _folder.Write("self.jsonl", $$$"""{"query":"你是谁","response":"我是{{NAME}}，由{{AUTHOR}}训练","tag":"{{{tag}}}"}""");
        var config = DataFolder.Config(path) with { System = "", ModelName = ["小明", "Bob"], ModelAuthor = ["甲", "A"] };
        Assert.Equal("[user]你是谁[assistant]" + expected, Compact(DataFolder.Texts(config)[0]));
    }

    [Fact]
    public void SelfCognition_OneValueOrNone_ServesBothOrStays()
    {
        var path = _folder.Write("self.jsonl", """{"query":"{{NAME}}?","response":"{{AUTHOR}}","tag":"zh"}""");
        Assert.Equal("[user]bot?[assistant]{{AUTHOR}}", Compact(DataFolder.Texts(DataFolder.Config(path) with { System = "", ModelName = ["bot"] })[0]));
    }

    [Fact]
    public void Notices_UnusedKeysAndOpenQuestions_AreToldOnceWithACount()
    {
        var row = """{"messages":[{"role":"user","content":"Q","id":1},{"role":"assistant","content":"A","id":2},{"role":"user","content":"x"}]}""";
        var report = DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", row + "\n" + row))).Report;
        Assert.Contains(report, line => line.EndsWith("the key \"id\" of a message is not used (4 ×)"));
        Assert.Contains(report, line => line.Contains("without an answer at the end of a row was left out (2 ×)"));
    }

    private static string Compact(string text) => text.TrimEnd('\n').Replace("<|im_end|>", "").Replace("\n<|im_start|>", "[").Replace("<|im_start|>", "[")
        .Replace("[system\n", "[system]").Replace("[user\n", "[user]").Replace("[assistant\n", "[assistant]").Replace("<|endoftext|>", "");
}
