using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Client.Chat;

/// <summary>Answers one conversation: shows pieces of text to the second argument when it is not null, returns the whole answer.</summary>
public delegate string Answerer(Conversation conversation, Action<string>? onText);

/// <summary>
/// The interactive mode of <c>megatron infer</c>: a prompt, an answer, a line of dashes, until <c>exit</c> or the end of the input. Commands
/// are those of the reference and may be written in any case.
/// </summary>
/// <param name="input">Lines of the user.</param>
/// <param name="output">Prompts and answers.</param>
/// <param name="answer">The model.</param>
/// <param name="results">Gets a line per answer.</param>
/// <param name="stream">Show text while it comes.</param>
public sealed class ChatSession(TextReader input, TextWriter output, Answerer answer, ResultFile results, bool stream)
{
    private const string DefaultSystem = "default-system";

    private static readonly string Dashes = new('-', 50);

    private readonly List<ChatMessage> history = [];
    private string? system;
    private bool isMultiLine;

    /// <summary>Runs until the user leaves.</summary>
    public void Run()
    {
        output.WriteLine("Commands: exit or quit; clear forgets the conversation; reset-system changes the system prompt; multi-line and single-line.");
        while (Read(isSystem: false) is { } text)
        {
            switch (text.Trim().ToLowerInvariant())
            {
                case "":
                    break;
                case "exit" or "quit":
                    return;
                case "clear":
                    history.Clear();
                    break;
                case "multi-line":
                    isMultiLine = true;
                    output.WriteLine("End your text with #.");
                    break;
                case "single-line":
                    isMultiLine = false;
                    break;
                case "reset-system":
                    if (!ResetSystem()) return;
                    break;
                default:
                    Ask(text);
                    break;
            }
        }
    }

    private bool ResetSystem()
    {
        if (Read(isSystem: true) is not { } text) return false;
        system = text.Trim() == DefaultSystem ? null : text;
        history.Clear();
        return true;
    }

    private void Ask(string text)
    {
        if (text.StartsWith("tool:", StringComparison.OrdinalIgnoreCase))
        {
            output.WriteLine("Tool messages are not supported.");
            return;
        }

        var conversation = new Conversation(system, [.. history, new ChatMessage(ChatMessage.User, text)]);
        try
        {
            var response = answer(conversation, stream ? Show : null);
            output.WriteLine(stream ? "" : response);
            output.WriteLine(Dashes);
            results.Write(conversation, response, labels: null, isBatch: false);
            history.AddRange([conversation.Messages[^1], new ChatMessage(ChatMessage.Assistant, response)]);
        }
        catch (ConfigException exception) when (exception.Errors[0].Code is "MODEL022" or "TPL002")
        {
            // The conversation, not the model, is what does not fit: the user can clear it.
            output.WriteLine($"{exception.Errors[0].Message} (clear forgets the conversation)");
        }
    }

    private void Show(string text)
    {
        output.Write(text);
        output.Flush();
    }

    /// <summary>What the user typed; null at the end of the input.</summary>
    private string? Read(bool isSystem)
    {
        output.Write((isSystem, isMultiLine) switch
        {
            (true, true) => "<<<[MS] ",
            (true, false) => "<<<[S] ",
            (false, true) => "<<<[M] ",
            _ => "<<< ",
        });
        output.Flush();
        var line = input.ReadLine();
        if (!isMultiLine || line is null) return line;
        if (line.Trim().ToLowerInvariant() is "single-line" or "exit" or "quit") return line;

        var lines = new List<string>();
        while (line is not null && !line.TrimEnd().EndsWith('#'))
        {
            lines.Add(line);
            line = input.ReadLine();
        }
        if (line is not null) lines.Add(line.TrimEnd()[..^1]);
        return string.Join('\n', lines);
    }
}
