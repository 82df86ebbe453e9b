using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Testing;

namespace Megatron.Client.Tests.Cli;

/// <summary><c>megatron infer</c> from the command line on a small model with random weights.</summary>
public sealed class InferCommandTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public InferCommandTests() => TinyModelFolder.Create(folder.Combine("model"));

    [Fact]
    public async Task Infer_Batch_WritesAnswersLabelsAndStatistics()
    {
        await File.WriteAllLinesAsync(folder.Combine("rows.jsonl"),
            ["""{"messages": [{"role": "user", "content": "One plus one?"}, {"role": "assistant", "content": "Two."}]}""", """{"query": "Who?"}""",
                """{"system": "Be brief.", "query": "A third one", "response": "Yes"}"""], TestContext.Current.CancellationToken);
        var (single, output) = await InferAsync("single.jsonl", "--max_batch_size", "1", "--metric", "acc");
        Assert.Contains("'num_samples': 3", output, StringComparison.Ordinal);
        Assert.Contains("acc: 0 (0 of 3)", output, StringComparison.Ordinal);
        Assert.Equal(["Two.", null, "Yes"], single.Select(row => row.GetProperty("labels").GetString()));
        Assert.Equal([2, 2, 3], single.Select(row => row.GetProperty("messages").GetArrayLength()));
        var (batch, _) = await InferAsync("batch.jsonl", "--max_batch_size", "8");
        Assert.Equal(single.Select(row => row.GetRawText()), batch.Select(row => row.GetRawText()));
        var (_, streamed) = await InferAsync("stream.jsonl", "--stream");
        Assert.Contains("[QUERY] One plus one?\n[LABELS] Two.\n[RESPONSE] ", streamed, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Infer_MoreTokensThanPositions_SaysSoOnceAndAnswers()
    {
        await File.WriteAllLinesAsync(folder.Combine("rows.jsonl"), ["""{"query": "One?"}""", """{"query": "Two?"}"""], TestContext.Current.CancellationToken);
        var (rows, output) = await InferAsync("long.jsonl", "--max_new_tokens", "513", "--stop_words", "e", "a", "o");
        Assert.Equal(2, rows.Count);
        var warning = Assert.Single(output.Split('\n'), line => line.StartsWith("warning: ", StringComparison.Ordinal));
        Assert.StartsWith("warning: max_new_tokens = 513 is more than the ", warning, StringComparison.Ordinal);
        Assert.EndsWith("answers end there.", warning, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("CFG020", "--max_new_tokens", "4")]
    [InlineData("MODEL006", "--model", "/nonexistent/model")]
    [InlineData("CFG006", "--model", "/", "--stream", "--num_beams", "2")]
    [InlineData("CFG004", "--model", "/", "--infer_backend", "vllm")]
    [InlineData("CFG006 --context_parallel_size = 2 does not go with megatron infer", "--model", "/", "--context_parallel_size", "2")]
    public async Task Infer_BadOptions_OneLineAndExit2(string code, params string[] options)
    {
        var (exit, _, error) = await RunAsync(["infer", .. options]);
        Assert.Equal(ExitCode.BadInput, exit);
        Assert.Contains(code, error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Infer_FolderWithoutModel_SaysSo()
    {
        var (exit, _, error) = await RunAsync(["infer", "--model", folder.Root]);
        Assert.Equal(ExitCode.BadInput, exit);
        Assert.Contains("MODEL006", error, StringComparison.Ordinal);
    }

    public void Dispose() => folder.Dispose();

    private async Task<(List<JsonElement> Rows, string Output)> InferAsync(string result, params string[] options)
    {
        var (exit, output, error) = await RunAsync(["infer", "--model", folder.Combine("model"), "--val_dataset", folder.Combine("rows.jsonl"),
            "--max_new_tokens", "6", "--temperature", "0", "--result_path", folder.Combine(result), .. options]);
        Assert.Equal("", error);
        Assert.Equal(ExitCode.Ok, exit);
        var lines = await File.ReadAllLinesAsync(folder.Combine(result), TestContext.Current.CancellationToken);
        return ([.. lines.Select(line => JsonSerializer.Deserialize<JsonElement>(line))], output);
    }

    private static async Task<(int Exit, string Output, string Error)> RunAsync(string[] arguments)
    {
        using var output = new StringWriter { NewLine = "\n" };
        using var error = new StringWriter { NewLine = "\n" };
        var exit = await new MegatronCli(new CommandConsole(output, error), _ => null, TimeProvider.System).RunAsync(arguments, TestContext.Current.CancellationToken);
        return (exit, output.ToString(), error.ToString());
    }
}
