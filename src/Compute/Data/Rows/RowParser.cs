using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Rows;

/// <summary>What a row is read for.</summary>
internal enum RowPurpose
{
    /// <summary>It must hold an answer to learn.</summary>
    Training,

    /// <summary>It may end with a question.</summary>
    Prompt,
}

/// <summary>
/// A row of JSON → a conversation. The form is chosen by its columns: a list of messages, else instruction and input (alpaca), else query and
/// response; a row with a response only, such as <c>{"text": …}</c>, is pre-training text. Each row is judged by itself, so a file may mix forms.
/// </summary>
internal sealed class RowParser(IReadOnlyDictionary<string, string> renames, SelfCognition selfCognition, ulong seed, RowPurpose purpose)
{
    private static readonly JsonDocumentOptions JsonOptions = new() { AllowDuplicateProperties = false };

    /// <summary>Parses one row; false with the problem, never an exception, when it cannot be used.</summary>
    /// <param name="row">The row.</param>
    /// <param name="notices">Takes up what is worth telling.</param>
    /// <param name="conversation">A conversation that has at least one answer, or a question where the purpose is a prompt.</param>
    /// <param name="problem">What is wrong.</param>
    public bool TryParse(SourceRow row, DataNotices notices, [NotNullWhen(true)] out Conversation? conversation, [NotNullWhen(false)] out RowProblem? problem)
    {
        conversation = null;
        problem = row.Problem;
        if (problem is not null) return false;
        try
        {
            conversation = Parse(row.Json, row.Number, notices);
            return true;
        }
        catch (JsonException e)
        {
            problem = new RowProblem("DATA001", "invalid JSON", $"{row.Position}:{e.BytePositionInLine + 1}",
                $"invalid JSON ({JsonText.Explain(e)}); correct the row.");
        }
        catch (BadEscapeException e)
        {
            problem = new RowProblem("DATA006", "not Unicode text", $"{row.Position}:{e.Offset + 1}",
                $"the escape {e.Message} stands for no character; remove it or write the whole surrogate pair.");
        }
        catch (RowException e)
        {
            problem = new RowProblem(e.Code, e.Reason, row.Position, e.Message);
        }
        return false;
    }

    private Conversation Parse(ReadOnlyMemory<byte> json, int index, DataNotices notices)
    {
        var bad = JsonEscapes.FindBad(json.Span, out var escape);
        if (bad >= 0) throw new BadEscapeException(bad, escape);
        using var document = JsonDocument.Parse(json, JsonOptions);
        if (document.RootElement.ValueKind != JsonValueKind.Object)
            throw new RowException("DATA002", "a row is no object", $"the row is {JsonValues.Kind(document.RootElement)}, not an object such as {{\"messages\": […]}}.");

        var columns = new RowColumns(document.RootElement, renames);
        var system = columns.Find(RowColumns.System) is { } column ? JsonValues.Text(column.Value, column.Name) : null;
        var messages = columns.Find(RowColumns.Messages) is { } list
            ? MessagesParser.Parse(list.Value, list.Name, notices)
            : ParseQueryResponse(columns, index, notices);
        MessagesParser.CheckOrder(messages, purpose, notices);
        if (messages[0].Role == ChatMessage.SystemRole)
        {
            if (system is not null && system != messages[0].Content)
                throw new RowException("DATA005", "two system prompts", "the row has a system column and another system message; keep one of them.");
            system = messages[0].Content;
            messages.RemoveAt(0);
        }
        var tag = columns.Get("tag") is { ValueKind: JsonValueKind.String } value ? value.GetString() : null;
        var tools = columns.Get("tools") is { } signatures ? ToolColumns.Tools(signatures) : [];
        return new Conversation(system, selfCognition.Apply(messages, tag)) { Tools = tools };
    }

    private List<ChatMessage> ParseQueryResponse(RowColumns columns, int index, DataNotices notices)
    {
        var alpaca = columns.Has("instruction") && columns.Has("input");
        var query = alpaca ? AlpacaQuery(columns) : columns.Find(RowColumns.Query) is { } found ? JsonValues.Text(found.Value, found.Name) : null;
        if (columns.Find(RowColumns.Response) is not { } response)
        {
            if (purpose == RowPurpose.Prompt && query is not null && !RowColumns.Response.Any(columns.Has)) return QueryOnly(columns, query);
            var candidates = RowColumns.Response.Where(columns.Has).ToArray();
            throw candidates.Length > 1
                ? new RowException("DATA003", "ambiguous answer columns",
                    $"{string.Join(" and ", candidates)} could each be the answer; name one of them response with --columns.")
                : new RowException("DATA003", "no messages and no answer",
                    $"the row has neither messages nor an answer (columns: {columns.Names}); see --columns to rename columns.");
        }
        var messages = new List<ChatMessage>();
        if (columns.Get("history") is { } history) AddHistory(history, messages);
        if (query is not null) messages.Add(new ChatMessage(ChatMessage.User, query));
        else if (RowColumns.Query.Count(columns.Has) > 1) notices.Count("several columns could be the question, so none was taken");
        messages.Add(new ChatMessage(ChatMessage.Assistant, ResponseText(response.Value, response.Name, index)));
        return messages;
    }

    private static List<ChatMessage> QueryOnly(RowColumns columns, string query)
    {
        var messages = new List<ChatMessage>();
        if (columns.Get("history") is { } history) AddHistory(history, messages);
        messages.Add(new ChatMessage(ChatMessage.User, query));
        return messages;
    }

    private static string AlpacaQuery(RowColumns columns)
    {
        var instruction = columns.Get("instruction") is { } first ? JsonValues.Text(first, "instruction") : "";
        var input = columns.Get("input") is { } second ? JsonValues.Text(second, "input") : "";
        return instruction.Length > 0 && input.Length > 0 ? instruction + "\n" + input : instruction + input;
    }

    // A list of answers stands for any one of them; which one depends on the seed and the row only.
    private string ResponseText(JsonElement value, string name, int index)
    {
        if (value.ValueKind != JsonValueKind.Array || value.GetArrayLength() == 0 || value[0].ValueKind != JsonValueKind.String)
            return JsonValues.Text(value, name);
        var pick = new DataRandom(seed, "response", index).NextInt(value.GetArrayLength());
        return JsonValues.Text(value[pick], $"{name}[{pick}]");
    }

    private static void AddHistory(JsonElement history, List<ChatMessage> messages)
    {
        var round = 0;
        foreach (var pair in JsonValues.List(history, "history").EnumerateArray())
        {
            var what = $"history[{round++}]";
            if (pair.ValueKind != JsonValueKind.Array || pair.GetArrayLength() != 2)
                throw new RowException("DATA003", "history is no list of pairs", $"{what} is not a pair [question, answer].");
            messages.Add(new ChatMessage(ChatMessage.User, JsonValues.Text(pair[0], what + " question")));
            messages.Add(new ChatMessage(ChatMessage.Assistant, JsonValues.Text(pair[1], what + " answer")));
        }
    }

    private sealed class BadEscapeException(int offset, string escape) : Exception(escape)
    {
        public int Offset { get; } = offset;
    }
}
