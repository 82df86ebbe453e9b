using CsCheck;
using Megatron.Compute.Data;
using Megatron.Compute.Data.Sources;
using Parquet.Serialization;

namespace Megatron.Compute.Tests.Data;

public sealed class SourceTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void LineFile_AnyText_GivesItsNonBlankLines() =>
        Gen.Const(new[] { "", " ", "\t", "a", "é", "你好", "{\"x\": 1}", new string('z', 3000) }).SelectMany(texts => Gen.Int[0, texts.Length - 1].Select(i => texts[i])).Array[0, 30].Select(Gen.Bool, Gen.Bool, Gen.Bool).Sample(
            (lines, crlf, bom, lastEnd) =>
            {
                var end = crlf ? "\r\n" : "\n";
                var path = _folder.Write("lines.txt", (bom ? "\uFEFF" : "") + string.Join(end, lines) + (lastEnd ? end : ""));
                var expected = lines.Select((text, i) => (text, number: i + 1)).Where(line => line.text.Trim(' ', '\t').Length > 0).ToArray();
                if (expected.Length == 0) return;
                using var file = LineFile.Open(path, LineFile.MaxLineBytes);
                Assert.Equal(expected.Length, file.Count);
                for (var i = 0; i < expected.Length; i++)
                {
                    Assert.True(file.TryRead(i, out var bytes, out _));
                    Assert.Equal(expected[i].text, System.Text.Encoding.UTF8.GetString(bytes.Span).TrimEnd('\r'));
                    Assert.Equal(expected[i].number, file.LineNumber(i));
                }
            }, iter: 200, threads: 1);

    [Fact]
    public void LineFile_LineAcrossScanBlocks_IsWhole()
    {
        var longLine = new string('a', (3 << 20) + 17);
        using var file = LineFile.Open(_folder.Write("long.txt", "first\n" + longLine + "\nlast"), LineFile.MaxLineBytes);
        Assert.Equal(3, file.Count);
        Assert.True(file.TryRead(1, out var bytes, out _));
        Assert.Equal(longLine.Length, bytes.Length);
        Assert.True(file.TryRead(2, out bytes, out _));
        Assert.Equal("last"u8, bytes.Span);
    }

    [Fact]
    public void Json_ArrayOfRows_IsReadWithLineNumbers()
    {
        using var rows = RowSources.Open(_folder.Write("rows.json", "\uFEFF [\n  {\"text\": \"a\"},\n  {\"text\":\n \"b\"}, {\"text\":\"c\"}\n]\n"));
        Assert.Equal(3, rows.Count);
        Assert.EndsWith(":2", rows.Position(0));
        Assert.EndsWith(":3", rows.Position(1));
        Assert.EndsWith(":4", rows.Position(2));
        Assert.True(rows.TryRead(1, out var json, out _));
        Assert.Equal("{\"text\":\n \"b\"}"u8, json.Span);
    }

    [Fact]
    public void Json_LinesOfRows_AreReadAsJsonl()
    {
        using var rows = RowSources.Open(_folder.Write("rows.json", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n"));
        Assert.Equal(2, rows.Count);
    }

    [Fact]
    public void Txt_EachLine_IsATextRow()
    {
        var config = DataFolder.Config(_folder.Write("book.txt", "one \"quoted\"\r\n\r\ntwo\\\n")) with { UseChatTemplate = false, LossScale = "all" };
        Assert.Equal(["one \"quoted\"<|endoftext|>", "two\\<|endoftext|>"], DataFolder.Texts(config));
    }

    [Fact]
    public void Csv_QuotesCommasAndLineEnds_AreRead()
    {
        const string csv = "query,response\r\n\"a \"\"b\"\", c\",\"line 1\nline 2\"\r\n\r\nplain,\n你,\"\"";
        using var rows = RowSources.Open(_folder.Write("rows.csv", csv));
        Assert.Equal(3, rows.Count);
        Assert.EndsWith(":2", rows.Position(0));
        Assert.EndsWith(":5", rows.Position(1));
        Assert.Equal(("a \"b\", c", "line 1\nline 2"), Row(rows, 0));
        Assert.Equal(("plain", ""), Row(rows, 1));
        Assert.Equal(("你", ""), Row(rows, 2));
    }

    [Fact]
    public void Csv_AnyFields_RoundTrip() =>
        Gen.String[Gen.OneOf(Gen.Char.AlphaNumeric, Gen.Char["\",\n é"]), 0, 8].Array[2].Array[1, 8].Sample(records =>
        {
            // The first field is prefixed so that no record is a blank line.
            var csv = "query,response\n" + string.Join("\n", records.Select(fields => Quote("q" + fields[0]) + "," + Quote(fields[1])));
            using var rows = RowSources.Open(_folder.Write("any.csv", csv));
            Assert.Equal(records.Select(fields => ("q" + fields[0], fields[1])), Enumerable.Range(0, rows.Count).Select(i => Row(rows, i)));
        }, iter: 200, threads: 1);

    [Fact]
    public async Task Parquet_FlatAndNestedRows_AreRead()
    {
        var path = _folder.PathOf("rows.parquet");
        await ParquetSerializer.SerializeAsync(new[]
        {
            new ParquetRow { System = "S", Messages = [new() { Role = "user", Content = "Q" }, new() { Role = "assistant", Content = "A" }] },
            new ParquetRow { System = null, Messages = [new() { Role = "user", Content = "R" }, new() { Role = "assistant", Content = "B" }] },
        }, path);
        var texts = DataFolder.Texts(DataFolder.Config(path) with { System = "" });
        Assert.Equal(2, texts.Length);
        Assert.StartsWith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>", texts[0]);
        Assert.StartsWith("<|im_start|>user\nR<|im_end|>", texts[1]);
    }

    [Fact]
    public void DatasetSpec_PathThatExists_IsTakenWhole()
    {
        var plain = _folder.Write("rows.jsonl", "x");
        var odd = _folder.Write("rows.jsonl#3", "x");
        Assert.Equal(new DatasetSpec(odd, null), DatasetSpec.Parse(odd));
        Assert.Equal(new DatasetSpec(plain, 4), DatasetSpec.Parse(plain + "#4"));
        Assert.Equal(new DatasetSpec(odd, 4), DatasetSpec.Parse(odd + "#4"));
    }

    private static string Quote(string field) => "\"" + field.Replace("\"", "\"\"") + "\"";

    private static (string, string) Row(IRowSource rows, int index)
    {
        Assert.True(rows.TryRead(index, out var json, out _));
        using var document = System.Text.Json.JsonDocument.Parse(json);
        return (document.RootElement.GetProperty("query").GetString() ?? "", document.RootElement.GetProperty("response").GetString() ?? "");
    }

    public sealed class ParquetRow
    {
        [System.Text.Json.Serialization.JsonPropertyName("system")]
        public string? System { get; set; }

        [System.Text.Json.Serialization.JsonPropertyName("messages")]
        public List<ParquetMessage> Messages { get; set; } = [];
    }

    public sealed class ParquetMessage
    {
        [System.Text.Json.Serialization.JsonPropertyName("role")]
        public string Role { get; set; } = "";

        [System.Text.Json.Serialization.JsonPropertyName("content")]
        public string Content { get; set; } = "";
    }
}
