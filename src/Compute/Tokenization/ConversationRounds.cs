using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// One question and its answers: usually one, several when assistant messages follow each other, none when the last is still open.
/// </summary>
internal sealed record ConversationRound(string Query, List<ChatMessage> Answers);

/// <summary>
/// Checks the order of messages and groups them into rounds. A conversation that starts with the assistant gets an empty question in front:
/// that is how plain text rows come in. Calls of tools are parts of an answer, results of tools are a question (<see cref="HermesTools"/>).
/// </summary>
internal static class ConversationRounds
{
    /// <summary>
    /// System prompt of the row (null when it has none) and at least one round. Throws <see cref="ConfigException"/> TPL003.
    /// </summary>
    public static (string? System, IReadOnlyList<ConversationRound> Rounds) Of(Conversation conversation)
    {
        var system = conversation.System;
        var rounds = new List<ConversationRound>();
        for (var i = 0; i < conversation.Messages.Count; i++)
        {
            var message = conversation.Messages[i];
            switch (message.Role)
            {
                case ChatMessage.SystemRole when i == 0:
                    system ??= message.Content;
                    break;
                case ChatMessage.User when rounds.Count == 0 || rounds[^1].Answers.Count > 0:
                    rounds.Add(new ConversationRound(message.Content, []));
                    break;
                case ChatMessage.Assistant or ChatMessage.ToolCall:
                    if (rounds.Count == 0)
                        rounds.Add(new ConversationRound("", []));
                    rounds[^1].Answers.Add(message.Role == ChatMessage.Assistant ? message : ToCall(message, rounds[^1].Answers));
                    break;
                case ChatMessage.ToolResponse when rounds.Count > 0 && rounds[^1].Answers.Count > 0:
                    rounds.Add(new ConversationRound(HermesTools.Response(message.Content), []));
                    break;
                case ChatMessage.ToolResponse when i > 0 && conversation.Messages[i - 1].Role == ChatMessage.ToolResponse:
                    rounds[^1] = rounds[^1] with { Query = rounds[^1].Query + "\n" + HermesTools.Response(message.Content) };
                    break;
                default:
                    throw Refuse(message, i);
            }
        }

        return rounds.Count > 0
            ? (system, rounds)
            : throw new ConfigException("TPL003", "The conversation has no user or assistant message; add one or remove the row.");
    }

    private static ChatMessage ToCall(ChatMessage message, List<ChatMessage> before) =>
        message with { Content = (before.Exists(answer => answer.Content.Length > 0) ? "\n" : "") + HermesTools.Call(message.Content) };

    private static ConfigException Refuse(ChatMessage message, int index) => new("TPL003", message.Role switch
    {
        ChatMessage.SystemRole => $"messages[{index}] has role 'system', which may only be the first message; move it or remove it.",
        ChatMessage.User => $"messages[{index}] is a second user message in a row; user and assistant must alternate.",
        ChatMessage.ToolResponse => $"messages[{index}] is the result of a tool, but no tool was called before it; put the call in front.",
        _ => $"messages[{index}] has the unknown role '{message.Role}'; use system, user, assistant, tool_call or tool_response.",
    });
}
