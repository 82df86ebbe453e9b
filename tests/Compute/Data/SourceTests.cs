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
    public void LineReader_AnyText_GivesItsNonBlankLines() =>
        Gen.Const(new[] { "", " ", "\t", "a", "é", "你好", "{\"x\": 1}", new string('z', 3000) }).SelectMany(texts => Gen.Int[0, texts.Length - 1].Select(i => texts[i])).Array[0, 30].Select(Gen.Bool, Gen.Bool, Gen.Bool).Sample(
            (lines, crlf, bom, lastEnd) =>
            {
                var end = crlf ? "\r\n" : "\n";
                var path = _folder.Write("lines.txt", (bom ? "\uFEFF" : "") + string.Join(end, lines) + (lastEnd ? end : ""));
                var expected = lines.Select((text, i) => (text, number: i + 1)).Where(line => line.text.Trim(' ', '\t').Length > 0).ToArray();
                if (expected.Length == 0) return;
                using var file = new LineReader(path, ByteReader.MaxRowBytes);
                for (var i = 0; i < expected.Length; i++)
                {
                    Assert.True(file.TryRead(out var bytes, out var problem));
                    Assert.Null(problem);
                    Assert.Equal(expected[i].text, System.Text.Encoding.UTF8.GetString(bytes.Span).TrimEnd('\r'));
                    Assert.Equal(expected[i].number, file.LineNumber);
                }
                Assert.False(file.TryRead(out _, out _));
            }, iter: 200, threads: 1);

    [Fact]
    public void LineReader_LineAcrossScanBlocks_IsWhole()
    {
        var longLine = new string('a', (3 << 20) + 17);
        using var file = new LineReader(_folder.Write("long.txt", "first\n" + longLine + "\nlast"), ByteReader.MaxRowBytes);
        Assert.True(file.TryRead(out _, out _));
        Assert.True(file.TryRead(out var bytes, out _));
        Assert.Equal(longLine.Length, bytes.Length);
        Assert.Equal(6, file.Offset);
        Assert.True(file.TryRead(out bytes, out _));
        Assert.Equal("last"u8, bytes.Span);
    }

    [Fact]
    public void Json_ArrayOfRows_IsReadWithLineNumbers()
    {
        var rows = ReadAll(_folder.Write("rows.json", "\uFEFF [\n  {\"text\": \"a\"},\n  {\"text\":\n \"b\"}, {\"text\":\"c\"}\n]\n"));
        Assert.Equal(3, rows.Count);
        Assert.EndsWith(":2", rows[0].Position);
        Assert.EndsWith(":3", rows[1].Position);
        Assert.EndsWith(":4", rows[2].Position);
        Assert.Equal("{\"text\":\n \"b\"}"u8, rows[1].Json.Span);
    }

    [Fact]
    public void Json_LinesOfRows_AreReadAsJsonl()
    {
        var rows = ReadAll(_folder.Write("rows.json", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n"));
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
        var rows = ReadAll(_folder.Write("rows.csv", csv));
        Assert.Equal(3, rows.Count);
        Assert.EndsWith(":2", rows[0].Position);
        Assert.EndsWith(":5", rows[1].Position);
        Assert.Equal(("a \"b\", c", "line 1\nline 2"), Row(rows[0]));
        Assert.Equal(("plain", ""), Row(rows[1]));
        Assert.Equal(("你", ""), Row(rows[2]));
    }

    [Fact]
    public void Csv_AnyFields_RoundTrip() =>
        Gen.String[Gen.OneOf(Gen.Char.AlphaNumeric, Gen.Char["\",\n é"]), 0, 8].Array[2].Array[1, 8].Sample(records =>
        {
            // The first field is prefixed so that no record is a blank line.
            var csv = "query,response\n" + string.Join("\n", records.Select(fields => Quote("q" + fields[0]) + "," + Quote(fields[1])));
            Assert.Equal(records.Select(fields => ("q" + fields[0], fields[1])), ReadAll(_folder.Write("any.csv", csv)).Select(Row));
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
    public async Task Parquet_SeveralRowGroups_AreReadOneAfterAnother()
    {
        var path = _folder.PathOf("groups.parquet");
        var rows = Enumerable.Range(0, 25).Select(i => new ParquetRow { Messages = [new() { Role = "user", Content = $"Q{i}" }, new() { Role = "assistant", Content = $"A{i}" }] });
        await ParquetSerializer.SerializeAsync(rows, path, new Parquet.ParquetOptions { RowGroupSize = 10 });
        var read = ReadAll(path);
        Assert.Equal(Enumerable.Range(1, 25), read.Select(row => row.Line));
        Assert.Contains("A24", System.Text.Encoding.UTF8.GetString(read[24].Json.Span));
    }

    [Theory]
    [InlineData("rows.jsonl", 100)]
    [InlineData("rows.json", 100)]
    [InlineData("rows.csv", 100)]
    public void Rows_LongerThanAnyBuffer_AreWhole(string name, int count)
    {
        // Rows of 0 to 99 times 30 kB: they straddle every block and make the window grow.
        var texts = Enumerable.Range(0, count).Select(i => string.Concat(Enumerable.Repeat($"{i} é \"\",\n", i * 1000))).ToArray();
        var json = texts.Select(text => System.Text.Json.JsonSerializer.Serialize(new { query = "q", response = text }));
        var path = _folder.Write(name, name switch
        {
            "rows.jsonl" => string.Join('\n', json),
            "rows.json" => "[" + string.Join(",\n", json) + "]",
            _ => "query,response\n" + string.Join('\n', texts.Select(text => "q," + Quote(text))),
        });
        Assert.Equal(texts, ReadAll(path).Select(row => Row(row).Item2));
    }

    [Fact]
    public void DatasetSpec_PathThatExists_IsTakenWhole()
    {
        var plain = _folder.Write("rows.jsonl", "x");
        var odd = _folder.Write("rows.jsonl#3", "x");
        AssertSpec([odd], null, odd);
        AssertSpec([plain], 4, plain + "#4");
        AssertSpec([odd], 4, odd + "#4");
    }

    [Fact]
    public void DatasetSpec_FolderOrPattern_GivesItsDataFilesInOrder()
    {
        foreach (var name in new[] { "set/b.jsonl", "set/a.txt.gz", "set/sub/c.csv", "set/README.md", "set/sub/deep/d.jsonl" }) _folder.Write(name, "x");
        var set = _folder.PathOf("set");
        AssertSpec([$"{set}/a.txt.gz", $"{set}/b.jsonl", $"{set}/sub/c.csv", $"{set}/sub/deep/d.jsonl"], null, set);
        AssertSpec([$"{set}/b.jsonl"], 7, $"{set}/*.jsonl#7");
        AssertSpec([$"{set}/b.jsonl", $"{set}/sub/deep/d.jsonl"], null, $"{set}/**/*.jsonl");
        AssertSpec([$"{set}/sub/c.csv"], null, $"{set}/s?b/*");
        foreach (var bad in new[] { $"{set}/*.parquet", $"{set}/nowhere/*.txt", _folder.PathOf("empty") })
        {
            Directory.CreateDirectory(_folder.PathOf("empty"));
            Assert.Equal("DATA009", Assert.Throws<Megatron.Compute.Configuration.ConfigException>(() => DatasetSpec.Parse(bad)).Errors[0].Code);
        }
    }

    [Fact]
    public void Build_Folder_ReadsAllItsFiles()
    {
        for (var i = 0; i < 3; i++) _folder.Write($"many/{i}.jsonl", string.Join('\n', Enumerable.Range(0, 4).Select(j => $$"""{"query":"q","response":"r{{i}}{{j}}"}""")));
        var texts = DataFolder.Texts(DataFolder.Config(_folder.PathOf("many")));
        Assert.Equal(12, texts.Length);
        Assert.Contains("r00", texts[0]);
        Assert.Contains("r23", texts[11]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Packed_UnderAnyName_IsReadByItsFirstBytes(bool zstd)
    {
        var text = System.Text.Encoding.UTF8.GetBytes(string.Join('\n', Enumerable.Repeat(DataFolder.GoodRow, 5000)));
        var packed = new MemoryStream();
        using (Stream pack = zstd ? new ZstdSharp.CompressionStream(packed, leaveOpen: true) : new System.IO.Compression.GZipStream(packed, System.IO.Compression.CompressionLevel.Fastest, leaveOpen: true))
            pack.Write(text);
        Assert.Equal(5000, ReadAll(_folder.Write("rows.jsonl", packed.ToArray())).Count);
        Assert.Equal(5000, ReadAll(_folder.Write("rows.jsonl" + (zstd ? ".zst" : ".gz"), packed.ToArray())).Count);
        // Cut off in the middle: refused with the place, after the rows before it.
        var error = Assert.Throws<Megatron.Compute.Configuration.ConfigException>(() => ReadAll(_folder.Write("cut.jsonl", packed.ToArray()[..(int)(packed.Length * 2 / 3)]))).Errors[0];
        Assert.Equal("DATA012", error.Code);
        Assert.Contains("unpacked bytes", error.Message);
    }

    private static void AssertSpec(string[] files, int? numRows, string text)
    {
        var spec = DatasetSpec.Parse(text);
        Assert.Equal(files, spec.Files);
        Assert.Equal(numRows, spec.NumRows);
    }

    private static string Quote(string field) => "\"" + field.Replace("\"", "\"\"") + "\"";

    private static List<SourceRow> ReadAll(string path)
    {
        using var reader = RowSources.Open(path);
        var rows = new List<SourceRow>();
        while (reader.TryRead(out var row)) rows.Add(row);
        return rows;
    }

    private static (string, string) Row(SourceRow row)
    {
        using var document = System.Text.Json.JsonDocument.Parse(row.Json);
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
