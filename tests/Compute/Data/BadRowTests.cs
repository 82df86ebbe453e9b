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

    /// <summary>The table of bad rows: the row, the code, and what the message says after the place.</summary>
    public static TheoryData<string, string, string> BadRows => new()
    {
        { """{"query":"Q","response":}""", "DATA001", ":2:25" },
        { """{"query":"Q","response":"A" """, "DATA001", ":2:" },
        { """{"query":"Q","response":"A"} x""", "DATA001", ":2:30" },
        { """{"query":"Q","query":"P","response":"A"}""", "DATA001", ":2:" },
        { "not json", "DATA001", ":2:" },
        { """[1,2]""", "DATA002", ":2: the row is a list" },
        { "42", "DATA002", "a number" },
        { "null", "DATA002", "null" },
        { "\"text\"", "DATA002", "a text" },
        { "{}", "DATA003", "columns: none" },
        { """{"foo":"bar"}""", "DATA003", "columns: foo" },
        { """{"query":"Q"}""", "DATA003", "neither messages nor an answer" },
        { """{"query":"Q","response":null}""", "DATA003", "neither messages nor an answer" },
        { """{"query":"Q","answer":"A","output":"B"}""", "DATA003", "answer and output" },
        { """{"query":"Q","response":4}""", "DATA003", "response is a number" },
        { """{"Query":"Q","query":"P","response":"A"}""", "DATA003", "two columns are called" },
        { """{"messages":{"role":"user"}}""", "DATA003", "messages is an object, not a list" },
        { """{"messages":"['x']"}""", "DATA003", "not a JSON list" },
        { """{"messages":["Q","A"]}""", "DATA003", "messages[0] is a text" },
        { """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":null}]}""", "DATA003", "messages[1] has no content" },
        { """{"messages":[{"role":"user"},{"role":"assistant","content":"A"}]}""", "DATA003", "messages[0] has no content" },
        { """{"messages":[{"role":"user","content":[{"type":"image","url":"x"}]},{"role":"assistant","content":"A"}]}""", "DATA003", "type \"image\"" },
        { """{"messages":[{"content":"Q"}]}""", "DATA003", "messages[0] has neither a role" },
        { """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A","loss":1}]}""", "DATA003", "messages[1].loss is a number" },
        { """{"query":"Q","response":"A","history":[["x"]]}""", "DATA003", "history[0] is not a pair" },
        { """{"messages":[]}""", "DATA004", "messages is an empty list" },
        { """{"messages":[{"role":"narrator","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[0].role is \"narrator\"" },
        { """{"messages":[{"role":3,"content":"Q"}]}""", "DATA005", "messages[0].role is a number" },
        { """{"messages":[{"role":"system","content":"S"},{"role":"system","content":"T"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is a system message" },
        { """{"system":"T","messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA005", "system column" },
        { """{"messages":[{"role":"user","content":"Q"}]}""", "DATA005", "no assistant message" },
        { """{"messages":[{"role":"user","content":"Q"},{"role":"user","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is a second user" },
        { """{"query":"Q\u0000","response":"A"}""", "DATA006", ":2:12: the escape \\u0000" },
        { """{"query":"Q\ud83d","response":"A"}""", "DATA006", "\\ud83d" },
        { """{"query":"Q\ude00","response":"A"}""", "DATA006", "\\ude00" },
        { """{"query":"Q\\ud83d","response":"A\ud83dx"}""", "DATA006", "\\ud83d" },
        { """{"messages":"[{\"role\":\"assistant\",\"content\":\"\\ud83d\"}]"}""", "DATA006", "the escape \\ud83d in the text of messages" },
        { """{"tools":5,"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}""", "DATA003", "tools is a number" },
        { """{"messages":[{"role":"user","content":"Q"},{"role":"tool_call","content":"clock"}]}""", "DATA003", "messages[1].content, a tool call," },
        { """{"messages":[{"role":"user","content":"Q"},{"role":"tool","content":"R"},{"role":"assistant","content":"A"}]}""", "DATA005", "messages[1] is the result of a tool" },
        { """{"query":"Q","response":"A","response":"B"}""", "DATA001", ":2:" },
        { """{"messages":[{"role":"assistant","content":[{"text":"A"}]}]}""", "DATA003", "messages[0].content is a list of something other" },
        { """{"query":{"a":1},"response":"A"}""", "DATA003", "query is an object" },
        { """{"system":4,"query":"Q","response":"A"}""", "DATA003", "system is a number" },
    };

    [Fact]
    public void BadRows_Table_HasAtLeast40Cases() => Assert.InRange(BadRows.Count, 40, int.MaxValue);

    [Theory]
    [MemberData(nameof(BadRows))]
    public void Strict_BadRow_EndsTheRunWithCodeAndPlace(string row, string code, string expected)
    {
        var path = _folder.Write("rows.jsonl", DataFolder.GoodRow + "\n" + row + "\n" + DataFolder.GoodRow + "\n");
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(DataFolder.Config(path) with { Strict = true })).Errors[0];
        Assert.Equal(code, error.Code);
        Assert.StartsWith(path + ":2", error.Message);
        Assert.Contains(expected, error.Message);
    }

    [Theory]
    [MemberData(nameof(BadRows))]
    public void NotStrict_BadRow_IsLeftOutCountedAndShownWithItsPlace(string row, string code, string expected)
    {
        var rows = Enumerable.Repeat(DataFolder.GoodRow, 150).ToList();
        rows.Insert(1, row);
        var path = _folder.Write("rows.jsonl", string.Join('\n', rows));
        using var data = DataFolder.Build(DataFolder.Config(path));
        Assert.Equal(150, data.TrainSamples.Count);
        Assert.Contains(data.Report, line => line.StartsWith($"row left out: {code} {path}:2") && line.Contains(expected));
        Assert.Contains(data.Report, line => line.StartsWith($"{path}: 1 of 151 rows left out (1 × ") && line.EndsWith($"{code})"));
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
