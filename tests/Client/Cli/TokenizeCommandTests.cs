using System.Text.Json;
using Megatron.Client.Cli;
using Megatron.Testing;

namespace Megatron.Client.Tests.Cli;

public sealed class TokenizeCommandTests : IDisposable
{
    private static readonly string Tokenizer = Repository.Asset("tokenizers", "tiny");

    private readonly TemporaryFolder folder = new();

    [Fact]
    public async Task Tokenize_ListOfTexts_IdsAndDecodedText()
    {
        var (exit, rows, _) = await RunAsync("lines.json", """["Call me Ishmael.", "<|im_end|>鯨"]""");
        Assert.Equal(ExitCode.Ok, exit);
        Assert.Equal(["Call me Ishmael.", "<|im_end|>鯨"], rows.Select(row => row.GetProperty("decoded").GetString()));
        Assert.Equal(4082, rows[1].GetProperty("ids")[0].GetInt32());
        Assert.False(rows[0].TryGetProperty("labels", out _));
    }

    [Fact]
    public async Task Tokenize_Conversation_LabelsAreTheAnswerAndItsEnd()
    {
        var (exit, rows, _) = await RunAsync("rows.jsonl", """{"query": "Who?", "response": "Me."}""", "--template", "qwen3");
        Assert.Equal(ExitCode.Ok, exit);
        var row = Assert.Single(rows);
        Assert.Equal("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>", row.GetProperty("decoded").GetString());
        var ids = row.GetProperty("ids").EnumerateArray().Select(id => id.GetInt32()).ToList();
        var labels = row.GetProperty("labels").EnumerateArray().Select(id => id.GetInt32()).ToList();
        Assert.Equal(ids.Count, labels.Count);
        Assert.All(ids.Zip(labels), pair => Assert.True(pair.Second == -100 || pair.Second == pair.First));
        Assert.Equal(4082, labels[^1]);
        Assert.Matches(@"^\[-100 \* \d+\]Me\.<\|im_end\|>$", row.GetProperty("label_text").GetString());
    }

    [Fact]
    public async Task Tokenize_BadRowAmongGoodOnes_HasALineWithTheErrorAndExit2()
    {
        var (exit, rows, _) = await RunAsync("rows.jsonl", "{\"text\": \"one\"}\n{\"rejected\": 1}\n{\"text\": \"two\"}", "--template", "qwen3");
        Assert.Equal(ExitCode.BadInput, exit);
        Assert.Equal(3, rows.Count);
        Assert.StartsWith("DATA003 ", rows[1].GetProperty("error").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Tokenize_ConversationWithoutTemplate_AsksForOne()
    {
        var (exit, rows, _) = await RunAsync("rows.jsonl", """{"query": "Who?", "response": "Me."}""");
        Assert.Equal(ExitCode.BadInput, exit);
        Assert.Contains("--template", rows[0].GetProperty("error").GetString(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("CFG008", "--tokenizer", "x")]
    [InlineData("CFG008", "--input", "x")]
    [InlineData("DATA009", "--tokenizer", ".", "--input", "missing.jsonl")]
    public async Task Tokenize_MissingInput_Exit2(string code, params string[] options)
    {
        var (exit, _, error) = await CallAsync(["tokenize", .. options]);
        Assert.Equal(ExitCode.BadInput, exit);
        Assert.Contains(code, error, StringComparison.Ordinal);
    }

    public void Dispose() => folder.Dispose();

    private async Task<(int Exit, List<JsonElement> Rows, string Error)> RunAsync(string name, string content, params string[] options)
    {
        await File.WriteAllTextAsync(folder.Combine(name), content, TestContext.Current.CancellationToken);
        var (exit, output, error) = await CallAsync(["tokenize", "--tokenizer", Tokenizer, "--input", folder.Combine(name), .. options]);
        return (exit, [.. output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => JsonSerializer.Deserialize<JsonElement>(line))], error);
    }

    private static async Task<(int Exit, string Output, string Error)> CallAsync(string[] arguments)
    {
        using var output = new StringWriter { NewLine = "\n" };
        using var error = new StringWriter { NewLine = "\n" };
        var exit = await new MegatronCli(new CommandConsole(output, error), _ => null, TimeProvider.System).RunAsync(arguments, TestContext.Current.CancellationToken);
        return (exit, output.ToString(), error.ToString());
    }
}
