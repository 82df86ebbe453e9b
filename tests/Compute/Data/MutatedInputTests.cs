using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Parquet.Serialization;

namespace Megatron.Compute.Tests.Data;

/// <summary>
/// Damaged files of every format: whatever bytes change, the outcome is rows, counted problems or one <see cref="ConfigException"/>, never
/// another exception. Each case prints its seed when it fails.
/// </summary>
public sealed class MutatedInputTests : IDisposable
{
    private const string Row =
        """{"system":"S","messages":[{"role":"user","content":"\u4f60\ud83d\ude00 \"x\""},{"role":"assistant","content":[{"type":"text","text":"é"}],"loss":true}]}""";

    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData("rows.jsonl", Row + "\n" + Row + "\n{\"query\":\"Q\",\"history\":[[\"a\",\"b\"]],\"response\":[\"A\",\"B\"]}\n", 1000)]
    [InlineData("rows.json", "[" + Row + ",\n" + Row + "]", 1000)]
    [InlineData("rows.csv", "query,response\n\"a \"\"b\"\"\",\"c\nd\"\ne,f\n", 1000)]
    [InlineData("rows.txt", "one\ntwo é\nthree", 200)]
    public void TextFile_BytesChanged_NeverThrowsAnythingElse(string name, string text, int cases)
    {
        for (var seed = 0; seed < cases; seed++) ReadAll(_folder.Write(name, Mutate(Encoding.UTF8.GetBytes(text), seed)), seed);
    }

    [Fact]
    public async Task Parquet_BytesChangedOrCutOff_NeverThrowsAnythingElse()
    {
        var path = _folder.PathOf("rows.parquet");
        await ParquetSerializer.SerializeAsync(Enumerable.Range(0, 20).Select(i => new SourceTests.ParquetRow
        {
            System = i % 2 == 0 ? null : "S",
            Messages = [new() { Role = "user", Content = $"Q{i}" }, new() { Role = "assistant", Content = "A" }],
        }), path);
        var bytes = await File.ReadAllBytesAsync(path);
        for (var seed = 0; seed < 150; seed++)
        {
            var changed = Mutate(bytes, seed);
            changed.AsSpan(0, Math.Min(4, changed.Length)).Clear();
            "PAR1"u8[..Math.Min(4, changed.Length)].CopyTo(changed);
            ReadAll(_folder.Write("changed.parquet", changed), seed);
        }
    }

    private static void ReadAll(string path, int seed)
    {
        try
        {
            using var source = RowSources.Open(path);
            var parser = new RowParser(new Dictionary<string, string>(), new SelfCognition(["n"], []), seed: 1, RowPurpose.Training);
            while (source.TryRead(out var row))
            {
                var parsed = parser.TryParse(row, new DataNotices(), out var conversation, out var problem);
                Assert.True(parsed ? conversation?.Messages.Count > 0 : problem?.Code.StartsWith("DATA0", StringComparison.Ordinal), $"seed {seed}");
            }
        }
        catch (ConfigException)
        {
            // Refused as a whole: the other good outcome.
        }
        catch (Exception e)
        {
            Assert.Fail($"seed {seed}, {Path.GetFileName(path)}: {e}");
        }
    }

    private static byte[] Mutate(byte[] bytes, int seed)
    {
        var random = new Random(seed);
        var changed = bytes.ToList();
        for (var n = random.Next(1, 4); n > 0 && changed.Count > 0; n--)
        {
            var at = random.Next(changed.Count);
            switch (random.Next(4))
            {
                case 0: changed[at] = (byte)random.Next(256); break;
                case 1: changed.RemoveAt(at); break;
                case 2: changed.Insert(at, "\"{}[],:\\u\n0n"u8[random.Next(12)]); break;
                default: changed.RemoveRange(at, Math.Min(random.Next(10), changed.Count - at)); break;
            }
        }
        return [.. changed];
    }
}
