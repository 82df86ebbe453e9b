using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Client.Quickstart;
using Megatron.Testing;

namespace Megatron.EndToEnd.Tests;

/// <summary>The README's first command, whole, as a process of its own.</summary>
public sealed class QuickstartTests
{
    private static readonly TimeSpan allowedTime = TimeSpan.FromMinutes(4);
    private const int AllowedMiB = 2000;

    [Fact]
    public async Task Quickstart_FromNothing_AnswersWithItsNameInTimeAndMemory()
    {
        using var folder = new TemporaryFolder();
        var start = Stopwatch.GetTimestamp();
        using var process = new MegatronProcess("quickstart", "--output_dir", folder.Root);
        var peakKiB = 0;
        await process.ReadUntilAsync(line =>
        {
            // 0 when it has ended right after the line.
            peakKiB = Math.Max(peakKiB, process.PeakResidentKiB());
            return line.StartsWith("=== Done in ", StringComparison.Ordinal);
        });
        var ended = (await process.EndAsync()).Expect(ExitCode.Ok);
        var elapsed = Stopwatch.GetElapsedTime(start);
        TestContext.Current.TestOutputHelper?.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"quickstart: {elapsed.TotalSeconds:F0} s, peak {peakKiB / 1024.0:F0} MiB resident"));
        Assert.Equal("", ended.Error);
        Assert.InRange(elapsed, TimeSpan.Zero, allowedTime);
        Assert.InRange(peakKiB, 1, AllowedMiB << 10);

        var made = Directory.GetDirectories(folder.Root, "v0-*").Single();
        var answer = JsonSerializer.Deserialize<JsonElement>(File.ReadLines(Path.Combine(made, "answer.jsonl")).Single()).GetProperty("response").GetString();
        Assert.Contains(QuickstartPlan.ModelName, answer, StringComparison.Ordinal);
        Assert.Contains($"{QuickstartPlan.Question} -> {answer}", ended.Output, StringComparison.Ordinal);
        Assert.Equal([0x89, .. "PNG"u8], File.ReadAllBytes(Path.Combine(made, "loss.png"))[..4]);
        foreach (var name in new[] { "config.json", "tokenizer.json", "args.json", "model.safetensors" })
            Assert.True(File.Exists(Path.Combine(made, "fine-tuned-hf", name)), name);
        foreach (var stage in new[] { "pretrained", "fine-tuned" })
        {
            var losses = RunFiles.Losses(Path.Combine(made, stage));
            Assert.True(losses[^1] < 0.8 * losses[0], $"{stage}: {losses[0]} -> {losses[^1]}");
        }
    }
}
