using System.Diagnostics;
using System.Globalization;
using System.IO.Compression;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// Data of real size, each in a process of its own so that its memory can be told: minutes, so only <c>./megatron test EndToEnd --large</c> runs them.
/// The figures are printed (add <c>-- -showLiveOutput</c>) and kept in docs/data.md.
/// </summary>
[Trait("Category", "large")]
public sealed class DataScaleTests(ITestOutputHelper output) : IDisposable
{
    private static readonly JsonSerializerOptions Readable = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task Prepare_OneGigabyteWithTheQwen3Tokenizer_IsFastBoundedAndThereAtTheNextStart()
    {
        const long size = 1_000_000_000;
        var model = Qwen3Folder();
        var rows = folder.Combine("rows.jsonl");
        WriteChat(rows, size);
        string[] words = ["data", "prepare", "--model", model, "--dataset", rows, "--dataset_num_proc", "2", "--dataset_cache_dir", folder.Combine("cache"), "--max_length", "4096"];
        var first = await PreparedInAsync(words);
        // Processor time, so that a busy machine does not fail the test: on two idle cores half of it passes.
        var speed = size / 1e6 / (first.Processor / 2);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"1 GB of jsonl on 2 threads: {first.Seconds:F1} s, {first.Processor:F1} s of processor time (two cores: {speed:F1} MB/s), at most {first.Mebibytes} MiB resident"));
        var again = await PreparedInAsync(words);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"second start: {again.Seconds:F2} s, {again.Processor:F2} s of processor time with program start and tokenizer"));
        Assert.InRange(first.Mebibytes, 1, 600);
        Assert.InRange(speed, 10, double.MaxValue);
        Assert.InRange(again.Seconds, 0, 1);
    }

    [Theory]
    [InlineData("random bytes", "DATA006")]
    [InlineData("one line of 2 GB", "DATA007")]
    [InlineData("one line of 2 GB as json", "DATA007")]
    [InlineData("one line of 2 GB as csv", "DATA007")]
    [InlineData("cut gzip", "DATA012")]
    public async Task Prepare_HopelessFile_IsRefusedInBoundedMemory(string kind, string code)
    {
        var model = Qwen3Folder();
        var path = WriteHopeless(kind);
        const int heapMebibytes = 400;
        var watch = Stopwatch.StartNew();
        using var process = new MegatronProcess(heapMebibytes, ["data", "prepare", "--model", model, "--dataset", path, "--dataset_cache_dir", folder.Combine("cache")]);
        var result = (await process.EndAsync()).Expect(ExitCode.BadInput);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{kind}: refused in {watch.Elapsed.TotalSeconds:F1} s with a heap of {heapMebibytes} MiB"));
        Assert.Contains(code, result.Error);
        Assert.DoesNotContain("   at ", result.Error);
        Assert.False(Directory.Exists(folder.Combine("cache")));
    }

    private static async Task<(double Seconds, double Processor, int Mebibytes)> PreparedInAsync(string[] words)
    {
        using var process = new MegatronProcess(words);
        var result = (await process.EndAsync()).Expect(ExitCode.Ok);
        var match = Regex.Match(result.Output, @"in ([\d.]+) s \(.*, ([\d.]+) s of processor time in all, at most (\d+) MiB");
        Assert.True(match.Success, result.Output);
        return (Number(1), Number(2), (int)Number(3));

        double Number(int group) => double.Parse(match.Groups[group].Value, CultureInfo.InvariantCulture);
    }

    /// <summary>A folder with the qwen3 tokenizer and a configuration of its vocabulary; no weights.</summary>
    private string Qwen3Folder()
    {
        var model = folder.Combine("model");
        TinyModelFolder.Create(model, withWeights: false);
        var config = JsonNode.Parse(File.ReadAllText(Path.Combine(model, "config.json"))) ?? throw new InvalidOperationException("no configuration");
        config["vocab_size"] = 151936;
        config["max_position_embeddings"] = 40960;
        File.WriteAllText(Path.Combine(model, "config.json"), config.ToJsonString());
        foreach (var file in Directory.EnumerateFiles(model, "tokenizer*")) File.Delete(file);
        foreach (var file in Directory.EnumerateFiles(Repository.Asset("tokenizers", "qwen3"), "tokenizer*")) File.Copy(file, Path.Combine(model, Path.GetFileName(file)));
        return model;
    }

    /// <summary>Questions and answers out of the project's two texts, English and Chinese by turns, until the file has the size.</summary>
    private static void WriteChat(string path, long size)
    {
        string[][] texts = [File.ReadAllLines(Repository.Text("moby-dick.txt")), File.ReadAllLines(Repository.Text("tang-poems.txt"))];
        var random = new Random(1);
        using var file = new StreamWriter(path);
        for (long row = 0, written = 0; written < size; row++)
        {
            var lines = texts[row % 10 == 0 ? 1 : 0];
            var (at, count) = (random.Next(lines.Length - 80), (int)Math.Exp(1.5 + 1.0 * Normal(random)) + 1);
            var answer = string.Join('\n', lines.AsSpan(at, Math.Min(count, 79)).ToArray());
            var line = JsonSerializer.Serialize(new { messages = new[] { new { role = "user", content = $"Passage {row} after: {lines[at + 79]}" }, new { role = "assistant", content = answer } } }, Readable);
            file.WriteLine(line);
            written += System.Text.Encoding.UTF8.GetByteCount(line) + 1;
        }
    }

    private static double Normal(Random random) => Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());

    private string WriteHopeless(string kind)
    {
        var path = folder.Combine(kind.EndsWith("json", StringComparison.Ordinal) ? "bad.json" : kind.EndsWith("csv", StringComparison.Ordinal) ? "bad.csv" : "bad.jsonl");
        using var file = File.Create(path);
        var block = new byte[1 << 20];
        if (kind == "random bytes")
        {
            var random = new Random(7);
            for (var i = 0; i < 100; i++)
            {
                random.NextBytes(block);
                file.Write(block);
            }
            return path;
        }
        if (kind == "cut gzip")
        {
            var packed = new MemoryStream();
            using (var gzip = new GZipStream(packed, CompressionLevel.Fastest, leaveOpen: true))
                for (var i = 0; i < 200_000; i++) gzip.Write(System.Text.Encoding.UTF8.GetBytes($"{{\"query\":\"q {i * 7919L % 1000}\",\"response\":\"{i * i}\"}}\n"));
            file.Write(packed.GetBuffer().AsSpan(0, (int)(packed.Length * 3 / 4)));
            return path;
        }
        file.Write(kind.EndsWith("json", StringComparison.Ordinal) ? "[{\"text\":\""u8 : kind.EndsWith("csv", StringComparison.Ordinal) ? "query,response\nq,\""u8 : "{\"text\":\""u8);
        block.AsSpan().Fill((byte)'x');
        for (var i = 0; i < 2048; i++) file.Write(block);
        return path;
    }
}
