using System.Text;
using System.Text.Json;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Rows;

/// <summary>Tools of a row and calls of a message, in the forms that data sets have them, as the JSON that templates write.</summary>
internal static class ToolColumns
{
    /// <summary>
    /// Signatures in the <c>tools</c> column: a list (or a text that holds one) of objects (or of texts that hold them); a bare function is wrapped as
    /// <c>{"type": "function", "function": …}</c>.
    /// </summary>
    /// <exception cref="RowException">DATA003.</exception>
    public static IReadOnlyList<string> Tools(JsonElement column)
    {
        if (column.ValueKind == JsonValueKind.String && string.IsNullOrWhiteSpace(column.GetString())) return [];
        var tools = new List<string>();
        foreach (var item in JsonValues.List(column, "tools").EnumerateArray())
        {
            var tool = Parse(item, $"tools[{tools.Count}]");
            if (tool.ValueKind != JsonValueKind.Object)
                throw new RowException("DATA003", "a tool is no object", $"tools[{tools.Count}] is {JsonValues.Kind(tool)}, not the object of a function.");
            var written = PythonJson.Write(tool);
            tools.Add(tool.TryGetProperty("function", out _) ? written : $"{{\"type\": \"function\", \"function\": {written}}}");
        }
        return tools;
    }

    /// <summary>A call as <c>{"name": …, "arguments": …}</c>.</summary>
    /// <param name="call">That object, a text that holds it, or OpenAI's <c>{"type": "function", "function": …}</c>; arguments may be a text that holds them.</param>
    /// <param name="what">How to call it in a message.</param>
    /// <exception cref="RowException">DATA003.</exception>
    public static string Call(JsonElement call, string what)
    {
        var parsed = Parse(call, what);
        if (parsed.ValueKind == JsonValueKind.Object && parsed.TryGetProperty("function", out var function) && function.ValueKind == JsonValueKind.Object) parsed = function;
        if (parsed.ValueKind != JsonValueKind.Object || !parsed.TryGetProperty("name", out var name) || name.ValueKind != JsonValueKind.String
            || !(parsed.TryGetProperty("arguments", out var arguments) || parsed.TryGetProperty("parameters", out arguments)))
            throw new RowException("DATA003", "a tool call has no name or arguments", $"{what} is no object with name and arguments; write {{\"name\": …, \"arguments\": {{…}}}}.");
        var written = arguments.ValueKind == JsonValueKind.String && TryParse(arguments.GetString() ?? "", out var inner) ? inner : arguments;
        return $"{{\"name\": {PythonJson.Write(name)}, \"arguments\": {PythonJson.Write(written)}}}";
    }

    private static JsonElement Parse(JsonElement value, string what)
    {
        if (value.ValueKind != JsonValueKind.String) return value;
        return TryParse(value.GetString() ?? "", out var parsed)
            ? parsed
            : throw new RowException("DATA003", $"{(what.Contains("call", StringComparison.Ordinal) ? "a tool call" : "a tool")} is no JSON", $"{what} is a text that is not a JSON object.");
    }

    private static bool TryParse(string text, out JsonElement parsed)
    {
        parsed = default;
        var bytes = Encoding.UTF8.GetBytes(text);
        if (JsonEscapes.FindBad(bytes, out var escape) >= 0)
            throw new RowException("DATA006", "not Unicode text", $"the escape {escape} in the text of a tool stands for no character; remove it.");
        try
        {
            parsed = JsonElement.Parse(bytes);
            return true;
        }
        catch (JsonException)
        {
            return false;
        }
    }
}
