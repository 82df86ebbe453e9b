using System.IO.Compression;
using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Tests.Data;

/// <summary>Bad data never reaches the model: each mistake has a code, a place and a remedy.</summary>
public sealed class BadRowTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData("""{"query":"Q","response":}""", "DATA001", ":2:25")]
    [InlineData("""{"query":"Q","response":"A" """, "DATA001", ":2:")]
    [InlineData("""{"query":"Q","response":"A"} x""", "DATA001", ":2:30")]
    [InlineData("""{"query":"Q","query":"P","response":"A"}""", "DATA001", ":2:")]
    [InlineData("not json", "DATA001", ":2:")]
    [InlineData("""[1,2]""", "DATA002", ":2: the row is a list")]
    [InlineData("42", "DATA002", "a number")]
    [InlineData("null", "DATA002", "null")]
    [InlineData("\"text\"", "DATA002", "a text")]
    [InlineData("{}", "DATA003", "columns: none")]
    [InlineData("""{"foo":"bar"}""", "DATA003", "columns: foo")]
    [InlineData("""{"query":"Q"}""", "DATA003", "neither messages nor an answer")]
    [InlineData("""{"query":"Q","response":null}""", "DATA003", "neither messages nor an answer")]
    [InlineData("""{"query":"Q","answer":"A","output":"B"}""", "DATA003", "answer and output")]
    [InlineData("""{"query":"Q","response":4}""", "DATA003", "response is a number")]
    [InlineData("""{"Query":"Q","query":"P","response":"A"}""", "DATA003", "two columns are called")]
    [InlineData("""{"messages":{"role":"user"}}""", "DATA003", "messages is an object, not a list")]
    [InlineData("""{"messages":"['x']"}""", "DATA003", "not a JSON list")]
    [InlineData("""{"messages":["Q","A"]}""", "DATA003", "messages[0] is a text")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":null}]}""", "DATA003", "messages[1] has no content")]
    [InlineData("""{"messages":[{"role":"user"},{"role":"assistant","content":"A"}]}""", "DATA003", "messages[0] has no content")]
    [InlineData("""{"messages":[{"role":"user","content":[{"type":"image","url":"x"}]},{"role":"assistant","content":"A"}]}""", "DATA003", "type \"image\"")]
    [InlineData("""{"messages":[{"content":"Q"}]}""", "DATA003", "messages[0] has neither a role")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A","loss":1}]}""", "DATA003", "messages[1].loss is a number")]
    [InlineData("""{"query":"Q","response":"A","history":[["x"]]}""", "DATA003", "history[0] is not a pair")]
    [InlineData("""{"messages":[]}""", "DATA004", "messages is an empty list")]
    [InlineData("""{"messages":[{"role":"narrator","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[0].role is \"narrator\"")]
    [InlineData("""{"messages":[{"role":3,"content":"Q"}]}""", "DATA005", "messages[0].role is a number")]
    [InlineData("""{"messages":[{"role":"system","content":"S"},{"role":"system","content":"T"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is a system message")]
    [InlineData("""{"system":"T","messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "system column")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"}]}""", "DATA005", "no assistant message")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"user","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is a second user")]
    [InlineData("""{"messages":[{"role":"user","content":"Q"},{"role":"tool","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "tool messages are not supported")]
    [InlineData("""{"query":"Q\u0000","response":"A"}""", "DATA006", ":2:12: the escape \\u0000")]
    [InlineData("""{"query":"Q\ud83d","response":"A"}""", "DATA006", "\\ud83d")]
    [InlineData("""{"query":"Q\ude00","response":"A"}""", "DATA006", "\\ude00")]
    [InlineData("""{"query":"Q\\ud83d","response":"A\ud83dx"}""", "DATA006", "\\ud83d")]
    [InlineData("""{"messages":"[{\"role\":\"assistant\",\"content\":\"\\ud83d\"}]"}""", "DATA006", "the escape \\ud83d in the text of messages")]
    public void Strict_BadRow_EndsTheRunWithCodeAndPlace(string row, string code, string expected)
    {
        var path = _folder.Write("rows.jsonl", DataFolder.GoodRow + "\n" + row + "\n" + DataFolder.GoodRow + "\n");
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path) with { Strict = true })).Errors[0];
        Assert.Equal(code, error.Code);
        Assert.StartsWith(path + ":2", error.Message);
        Assert.Contains(expected, error.Message);
    }

    [Theory]
    [InlineData(0x00, "a NUL byte")]
    [InlineData(0xFF, "the byte 0xFF")]
    [InlineData(0xC3, "the byte 0xC3")]
    public void Strict_ByteThatIsNoText_IsNamedWithItsOffset(byte bad, string expected)
    {
        var path = _folder.Write("rows.jsonl", [.. Encoding.UTF8.GetBytes(DataFolder.GoodRow), (byte)'\n', .. "{\"text\":\""u8, bad, .. "\"}"u8]);
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path) with { Strict = true })).Errors[0];
        Assert.Equal("DATA006", error.Code);
        Assert.Contains($"{path}:2:10: {expected}", error.Message);
        Assert.Contains($"at byte {DataFolder.GoodRow.Length + 1 + 9} of the file", error.Message);
    }

    [Theory]
    [InlineData("empty.jsonl", "", "DATA008")]
    [InlineData("blank.jsonl", "\n  \n\t\r\n", "DATA008")]
    [InlineData("bom.jsonl", "\uFEFF", "DATA008")]
    [InlineData("empty.json", "[]", "DATA008")]
    [InlineData("header.csv", "query,response\n", "DATA008")]
    [InlineData("zero.csv", "", "DATA008")]
    [InlineData("broken.json", "[{\"text\":\"a\"},\n{\"text\":}]", "DATA001")]
    [InlineData("nul.json", "[{\"text\":\"a\"},\n{\"text\":\"\0\"}]", "DATA006")]
    [InlineData("nul.csv", "query,response\na,\0\n", "DATA006")]
    [InlineData("open.json", "[{\"text\":\"a\"}", "DATA001")]
    [InlineData("after.json", "[{\"text\":\"a\"}] x", "DATA001")]
    [InlineData("fields.csv", "query,response\na,b,c\n", "DATA012")]
    [InlineData("quote.csv", "query,response\na,\"b\n", "DATA012")]
    [InlineData("inside.csv", "query,response\na,\"b\"c\n", "DATA012")]
    [InlineData("broken.parquet", "PAR1 no", "DATA012")]
    [InlineData("script.py", "print()", "DATA011")]
    public void File_ThatCannotBeUsed_IsRefusedByName(string name, string text, string code)
    {
        var path = _folder.Write(name, text);
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path))).Errors[0];
        Assert.Equal(code, error.Code);
        Assert.Contains(path, error.Message);
    }

    [Fact]
    public void File_Utf16_IsNamedAsSuch()
    {
        var path = _folder.Write("rows.jsonl", [.. Encoding.Unicode.GetPreamble(), .. Encoding.Unicode.GetBytes(DataFolder.GoodRow)]);
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path))).Errors[0];
        Assert.Equal("DATA006", error.Code);
        Assert.Contains("UTF-16", error.Message);
    }

    [Fact]
    public void File_DamagedGzip_IsRefused()
    {
        var path = _folder.Write("rows.jsonl.gz", [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
        Assert.Equal("DATA012", Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path))).Errors[0].Code);
    }

    [Fact]
    public void Line_LongerThanTheCap_IsAProblemOfThatRowOnly()
    {
        var path = _folder.Write("rows.jsonl", "short\n" + new string('x', 100) + "\nend");
        using var file = new LineReader(path, maxLineBytes: 50);
        Assert.True(file.TryRead(out _, out var problem));
        Assert.Null(problem);
        Assert.True(file.TryRead(out _, out problem));
        Assert.Equal("DATA007", problem?.Code);
        Assert.Contains("100 bytes", problem?.Detail);
        Assert.True(file.TryRead(out var last, out problem));
        Assert.Equal("end"u8, last.Span);
    }

    [Theory]
    [InlineData("nowhere.jsonl", "DATA009")]
    [InlineData("nowhere.jsonl#5", "DATA009")]
    [InlineData("", "DATA009")]
    public void Dataset_ThatIsNoFile_IsRefused(string name, string code)
    {
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(_folder.PathOf(name)))).Errors[0];
        Assert.Equal(code, error.Code);
    }

    [Theory]
    [InlineData("#0")]
    [InlineData("#-1")]
    [InlineData("#many")]
    [InlineData("#99999999999")]
    public void Dataset_CountThatIsNone_IsRefused(string count)
    {
        var path = _folder.Write("rows.jsonl", DataFolder.GoodRow);
        Assert.Equal("DATA010", Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path + count))).Errors[0].Code);
    }

    [Fact]
    public void SeveralBadFiles_AreAllReportedAtOnce()
    {
        var errors = Assert.Throws<ConfigException>(() =>
            DataFolder.Build(DataFolder.Config(_folder.PathOf("a.jsonl"), _folder.Write("b.jsonl", ""), _folder.Write("c.xyz", "x")))).Errors;
        Assert.Equal(["DATA009", "DATA008", "DATA011"], errors.Select(error => error.Code));
    }

    [Fact]
    public void NotStrict_FewBadRows_AreLeftOutCountedAndShown()
    {
        var rows = Enumerable.Repeat(DataFolder.GoodRow, 997).ToList();
        rows.Insert(10, "{");
        rows.Insert(500, """{"messages":[]}""");
        rows.Insert(501, """{"messages":[]}""");
        var path = _folder.Write("rows.jsonl", string.Join('\n', rows));
        var data = DataFolder.Build(DataFolder.Config(path));
        Assert.Equal(997, data.TrainSamples.Count);
        Assert.Contains($"{path}: 3 of 1000 rows left out (2 × messages is empty DATA004, 1 × invalid JSON DATA001)", data.Report);
        Assert.Contains(data.Report, line => line.StartsWith($"row left out: DATA001 {path}:11:"));
    }

    [Fact]
    public void NotStrict_MoreThanTenBadRows_ShowsTen()
    {
        var rows = Enumerable.Repeat(DataFolder.GoodRow, 20).Concat(Enumerable.Repeat("""{"messages":[]}""", 15));
        var report = DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", string.Join('\n', rows)))).Report;
        Assert.Equal(10, report.Count(line => line.StartsWith("row left out")));
    }

    [Fact]
    public void NotStrict_MoreThanOnePercentUnreadable_EndsTheRun()
    {
        var rows = Enumerable.Repeat(DataFolder.GoodRow, 98).Append("{").Append("7");
        var errors = Assert.Throws<ConfigException>(() =>
            DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", string.Join('\n', rows))))).Errors;
        Assert.Equal(["DATA001", "DATA002", "DATA001"], errors.Select(error => error.Code));
        Assert.Contains("2 of 100 rows cannot be read", errors[2].Message);
    }

    [Fact]
    public void NotStrict_NoUsableRow_EndsTheRunWithTheReasons()
    {
        var errors = Assert.Throws<ConfigException>(() =>
            DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", """{"messages":[]}""")))).Errors;
        Assert.Equal(["DATA004", "DATA021"], errors.Select(error => error.Code));
    }

    [Fact]
    public void Gzip_UnderTheNameJsonl_IsRead()
    {
        var packed = new MemoryStream();
        using (var gzip = new GZipStream(packed, CompressionLevel.Fastest, leaveOpen: true)) gzip.Write(Encoding.UTF8.GetBytes(DataFolder.GoodRow));
        Assert.Single(DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", packed.ToArray()))).TrainSamples);
    }
}
