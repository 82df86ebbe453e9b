using System.Text.Json;
using Megatron.Client.Chat;
using Megatron.Compute.Tokenization;
using Megatron.Testing;

namespace Megatron.Client.Tests.Chat;

public sealed class ChatSessionTests
{
    private readonly List<Conversation> asked = [];

    [Fact]
    public void Run_TwoQuestions_KeepsTheConversationAndWritesEachTurn()
    {
        using var folder = new TemporaryFolder();
        var shown = Run(folder, false, "one", "", "two", "EXIT", "never");
        Assert.Equal("<<< answer 1\n" + new string('-', 50) + "\n<<< <<< answer 2\n" + new string('-', 50) + "\n<<< ", AfterHelp(shown));
        Assert.Equal(["one", "answer 1", "two"], asked[1].Messages.Select(message => message.Content));
        var lines = File.ReadAllLines(folder.Combine("answers.jsonl"));
        Assert.Equal(2, lines.Length);
        using var last = JsonDocument.Parse(lines[1]);
        Assert.Equal("answer 2", last.RootElement.GetProperty("response").GetString());
        Assert.Equal(4, last.RootElement.GetProperty("messages").GetArrayLength());
        Assert.Equal(["response", "messages", "images", "audios", "videos"], last.RootElement.EnumerateObject().Select(property => property.Name));
    }

    [Fact]
    public void Run_Clear_ForgetsTheConversation()
    {
        using var folder = new TemporaryFolder();
        Run(folder, false, "one", "Clear", "two");
        Assert.Equal("two", Assert.Single(asked[1].Messages).Content);
    }

    [Fact]
    public void Run_ResetSystem_ChangesItAndDefaultRestoresIt()
    {
        using var folder = new TemporaryFolder();
        var shown = Run(folder, false, "one", "reset-system", "Be brief.", "two", "reset-system", "default-system", "three", "quit");
        Assert.Contains("<<<[S] ", shown, StringComparison.Ordinal);
        Assert.Equal([null, "Be brief.", null], asked.Select(conversation => conversation.System));
        Assert.All(asked, conversation => Assert.Single(conversation.Messages));
    }

    [Fact]
    public void Run_MultiLine_ReadsUpToTheNumberSign()
    {
        using var folder = new TemporaryFolder();
        var shown = Run(folder, false, "multi-line", "first", "second#", "single-line", "third");
        Assert.Contains("<<<[M] ", shown, StringComparison.Ordinal);
        Assert.Equal(["first\nsecond", "third"], asked.Select(conversation => conversation.Messages[^1].Content));
    }

    [Fact]
    public void Run_Streaming_ShowsPiecesOnce()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal("<<< answer 1\n" + new string('-', 50) + "\n<<< ", AfterHelp(Run(folder, true, "one")));
    }

    [Fact]
    public void Run_NoAnswer_LeavesNoFile()
    {
        using var folder = new TemporaryFolder();
        Run(folder, false, "tool: {}", "exit");
        Assert.Empty(asked);
        Assert.False(File.Exists(folder.Combine("answers.jsonl")));
    }

    private static string AfterHelp(string shown) => shown[(shown.IndexOf('\n', StringComparison.Ordinal) + 1)..];

    private string Run(TemporaryFolder folder, bool stream, params string[] lines)
    {
        using var results = new ResultFile(folder.Combine("answers.jsonl"), folder.Root, TimeProvider.System);
        using var output = new StringWriter { NewLine = "\n" };
        new ChatSession(new StringReader(string.Join('\n', lines)), output, Answer, results, stream).Run();
        return output.ToString();
    }

    private string Answer(Conversation conversation, Action<string>? onText)
    {
        asked.Add(conversation);
        onText?.Invoke("answer ");
        onText?.Invoke($"{asked.Count}");
        return $"answer {asked.Count}";
    }
}
