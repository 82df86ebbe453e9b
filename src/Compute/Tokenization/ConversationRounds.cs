using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>
/// One question and its answers: usually one, several when assistant messages follow each other, none when the last is still open.
/// </summary>
internal sealed record ConversationRound(string Query, List<ChatMessage> Answers);

/// <summary>
/// Checks the order of messages and groups them into rounds. A conversation that starts with the assistant gets an empty question in front:
/// that is how plain text rows come in.
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
                case ChatMessage.Assistant:
                    if (rounds.Count == 0)
                        rounds.Add(new ConversationRound("", []));
                    rounds[^1].Answers.Add(message);
                    break;
                default:
                    throw Refuse(message, i);
            }
        }

        return rounds.Count > 0
            ? (system, rounds)
            : throw new ConfigException("TPL003", "The conversation has no user or assistant message; add one or remove the row.");
    }

    private static ConfigException Refuse(ChatMessage message, int index) => new("TPL003", message.Role switch
    {
        ChatMessage.SystemRole => $"messages[{index}] has role 'system', which may only be the first message; move it or remove it.",
        ChatMessage.User => $"messages[{index}] is a second user message in a row; user and assistant must alternate.",
        "tool" or "tool_call" or "tool_response" =>
            $"messages[{index}] has role '{message.Role}'; tools are not supported, only system, user and assistant messages are.",
        _ => $"messages[{index}] has the unknown role '{message.Role}'; use system, user or assistant.",
    });
}
