using System.Text.Json;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Rows;

/// <summary>A row's list of messages: roles and text under their usual names, and the order that a training row must have.</summary>
internal static class MessagesParser
{
    private static readonly JsonElement EmptyText = JsonElement.Parse("\"\""u8);

    /// <summary>Messages of a row in our own roles.</summary>
    /// <param name="list">The value of the messages column.</param>
    /// <param name="column">Its name, for messages.</param>
    /// <param name="notices">Takes up keys that are left out.</param>
    public static List<ChatMessage> Parse(JsonElement list, string column, DataNotices notices)
    {
        list = JsonValues.List(list, column);
        if (list.GetArrayLength() == 0)
            throw new RowException("DATA004", $"{column} is empty", $"{column} is an empty list; write at least one message or remove the row.");
        var messages = new List<ChatMessage>(list.GetArrayLength());
        var index = 0;
        foreach (var item in list.EnumerateArray())
        {
            var what = $"{column}[{index++}]";
            if (item.ValueKind != JsonValueKind.Object)
                throw new RowException("DATA003", "a message is no object", $"{what} is {JsonValues.Kind(item)}, not an object with role and content.");
            if (Get(item, "role", "from") is { } role) ParseMessage(item, role, what, messages, notices);
            else ParsePair(item, what, messages);
        }
        return messages;
    }

    /// <summary>
    /// Checks the order: system only first, user and assistant in turn (a leading assistant and several assistants in a row are fine), results of tools
    /// only after an answer or another result, at least one assistant. A user message or a result at the end carries no loss in causal training and is left out; a prompt may end with it.
    /// </summary>
    /// <exception cref="RowException">DATA005 with the index of the message.</exception>
    public static void CheckOrder(List<ChatMessage> messages, RowPurpose purpose, DataNotices notices)
    {
        var afterUser = false;
        var answered = false;
        for (var i = 0; i < messages.Count; i++)
        {
            var role = messages[i].Role;
            if (role == ChatMessage.SystemRole && i > 0)
                throw new RowException("DATA005", "system message not first", $"messages[{i}] is a system message, which may only be the first one; move or remove it.");
            if (role == ChatMessage.ToolResponse && (i == 0 || messages[i - 1].Role is ChatMessage.User or ChatMessage.SystemRole))
                throw new RowException("DATA005", "tool result without a call", $"messages[{i}] is the result of a tool, but no tool was called before it; put the call in front.");
            if (role == ChatMessage.User && afterUser)
                throw new RowException("DATA005", "two user messages in a row", $"messages[{i}] is a second user message in a row; join them or remove one.");
            afterUser = role is ChatMessage.User or ChatMessage.ToolResponse;
            answered |= role is ChatMessage.Assistant or ChatMessage.ToolCall;
        }
        if (purpose == RowPurpose.Prompt && (answered || afterUser)) return;
        if (!answered)
            throw new RowException("DATA005", "no assistant message", "the conversation has no assistant message, so there is nothing to learn; add the answer.");
        if (!afterUser) return;
        while (messages[^1].Role is ChatMessage.User or ChatMessage.ToolResponse) messages.RemoveAt(messages.Count - 1);
        notices.Count("a user message without an answer at the end of a row was left out");
    }

    private static void ParseMessage(JsonElement item, JsonElement roleValue, string what, List<ChatMessage> messages, DataNotices notices)
    {
        if (roleValue.ValueKind != JsonValueKind.String)
            throw new RowException("DATA005", "role is no text", $"{what}.role is {JsonValues.Kind(roleValue)}, not a text.");
        var name = roleValue.GetString() ?? "";
        var role = Role(name, what);
        var calls = role == ChatMessage.Assistant ? Get(item, "tool_calls") : null;
        var content = Get(item, "content", "value") ?? (calls is not null ? EmptyText : (JsonElement?)null)
            ?? throw new RowException("DATA003", "a message has no content", $"{what} has no content (or null); write a text, which may be empty.");
        bool? loss = null;
        foreach (var property in item.EnumerateObject())
        {
            if (property.Name is "role" or "from" or "content" or "value" || (property.Name == "tool_calls" && role == ChatMessage.Assistant)) continue;
            if (property.Name != "loss") notices.Count($"the key \"{property.Name}\" of a message is not used");
            else if (property.Value.ValueKind is JsonValueKind.True or JsonValueKind.False) loss = property.Value.GetBoolean();
            else if (property.Value.ValueKind != JsonValueKind.Null)
                throw new RowException("DATA003", "loss is not true or false", $"{what}.loss is {JsonValues.Kind(property.Value)}; write true or false.");
        }
        if (loss is not null && role is not (ChatMessage.Assistant or ChatMessage.ToolCall))
        {
            notices.Count($"\"loss\" of a {role} message is not used: only answers are learned");
            loss = null;
        }
        var text = role == ChatMessage.ToolCall ? ToolColumns.Call(content, what + ".content, a tool call,") : JsonValues.Text(content, what + ".content");
        if (calls is null || text.Length > 0) messages.Add(new ChatMessage(role, text, loss));
        if (calls is not { } list) return;
        var index = 0;
        foreach (var call in JsonValues.List(list, what + ".tool_calls").EnumerateArray())
            messages.Add(new ChatMessage(ChatMessage.ToolCall, ToolColumns.Call(call, $"{what}.tool_calls[{index++}]"), loss));
    }

    // {"human": question, "assistant": answer}: one round in one object.
    private static void ParsePair(JsonElement item, string what, List<ChatMessage> messages)
    {
        if (Get(item, "system") is { } system) messages.Add(new ChatMessage(ChatMessage.SystemRole, JsonValues.Text(system, what + ".system")));
        var query = Get(item, "user", "human");
        var answer = Get(item, "assistant", "gpt", "bot");
        if (answer is not { } text)
            throw new RowException("DATA003", "a message has no role", $"{what} has neither a role nor a pair of user and assistant; write {{\"role\": …, \"content\": …}}.");
        if (query is { } question) messages.Add(new ChatMessage(ChatMessage.User, JsonValues.Text(question, what + ".user")));
        messages.Add(new ChatMessage(ChatMessage.Assistant, JsonValues.Text(text, what + ".assistant")));
    }

    private static string Role(string name, string what) => name switch
    {
        "system" => ChatMessage.SystemRole,
        "user" or "human" => ChatMessage.User,
        "assistant" or "gpt" or "bot" => ChatMessage.Assistant,
        "tool_call" or "function_call" or "function-call" => ChatMessage.ToolCall,
        "tool" or "tool_response" or "function_response" or "observation" or "observations" => ChatMessage.ToolResponse,
        _ => throw new RowException("DATA005", "unknown role", $"{what}.role is \"{name}\"; use system, user, assistant, tool_call or tool_response."),
    };

    private static JsonElement? Get(JsonElement item, params ReadOnlySpan<string> names)
    {
        foreach (var name in names)
            if (item.TryGetProperty(name, out var value) && value.ValueKind != JsonValueKind.Null) return value;
        return null;
    }
}
