using System.Text;
using System.Text.Json;

namespace Megatron.Compute.Data.Rows;

/// <summary>Text and lists out of JSON values, with messages that say what was found instead.</summary>
internal static class JsonValues
{
    /// <summary>
    /// A string, or the text parts of an OpenAI-style list <c>[{"type": "text", "text": …}]</c> joined.
    /// </summary>
    /// <param name="value">The value.</param>
    /// <param name="what">How to call it in a message: <c>messages[1].content</c>.</param>
    /// <exception cref="RowException">DATA003: it is no text.</exception>
    public static string Text(JsonElement value, string what)
    {
        if (value.ValueKind == JsonValueKind.String) return value.GetString() ?? "";
        if (value.ValueKind != JsonValueKind.Array) throw NotText(what, Kind(value));
        var text = new StringBuilder();
        foreach (var part in value.EnumerateArray())
        {
            if (part.ValueKind != JsonValueKind.Object || !part.TryGetProperty("type", out var type) || type.ValueKind != JsonValueKind.String)
                throw NotText(what, "a list of something other than {\"type\": \"text\", \"text\": …}");
            if (!type.ValueEquals("text"u8) || !part.TryGetProperty("text", out var piece) || piece.ValueKind != JsonValueKind.String)
                throw NotText(what, $"a part of type \"{type.GetString()}\"");
            text.Append(piece.GetString());
        }
        return text.ToString();
    }

    /// <summary>
    /// A list, or the list that a string holds as JSON: csv has no other way to carry one. The result outlives the row's document.
    /// </summary>
    /// <exception cref="RowException">DATA003 (it is no list), DATA006 (an escape in it that is no character).</exception>
    public static JsonElement List(JsonElement value, string what)
    {
        if (value.ValueKind == JsonValueKind.String)
        {
            try
            {
                var inner = Encoding.UTF8.GetBytes(value.GetString() ?? "");
                if (JsonEscapes.FindBad(inner, out var escape) >= 0)
                    throw new RowException("DATA006", "not Unicode text", $"the escape {escape} in the text of {what} stands for no character; remove it.");
                value = JsonElement.Parse(inner);
            }
            catch (JsonException)
            {
                throw new RowException("DATA003", $"{what} is not a list", $"{what} is a text that is not a JSON list; write a list.");
            }
        }
        return value.ValueKind == JsonValueKind.Array
            ? value
            : throw new RowException("DATA003", $"{what} is not a list", $"{what} is {Kind(value)}, not a list.");
    }

    /// <summary>What a value is, in words.</summary>
    public static string Kind(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => "a list",
        JsonValueKind.String => "a text",
        JsonValueKind.Number => "a number",
        JsonValueKind.True or JsonValueKind.False => "true or false",
        _ => "null",
    };

    private static RowException NotText(string what, string found)
    {
        var reason = $"{WithoutIndex(what)} is not text";
        return new RowException("DATA003", reason, $"{what} is {found}, not a text; only text can be learned.");
    }

    // Rows are counted by reason, so messages[3].content and messages[5].content are one reason.
    private static string WithoutIndex(string what)
    {
        var open = what.IndexOf('[');
        var close = what.IndexOf(']');
        return open >= 0 && close > open ? what[..open] + "[]" + what[(close + 1)..] : what;
    }
}
