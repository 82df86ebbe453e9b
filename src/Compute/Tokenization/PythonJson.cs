using System.Globalization;
using System.Text;
using System.Text.Json;

namespace Megatron.Compute.Tokenization;

/// <summary>JSON as Python's <c>json.dumps(value, ensure_ascii=False)</c> writes it: what chat templates put into prompts.</summary>
public static class PythonJson
{
    /// <summary>One value on one line; numbers keep their spelling.</summary>
    public static string Write(JsonElement value)
    {
        var text = new StringBuilder();
        Append(text, value);
        return text.ToString();
    }

    private static void Append(StringBuilder text, JsonElement value)
    {
        switch (value.ValueKind)
        {
            case JsonValueKind.Object:
                AppendList(text, '{', value.EnumerateObject(), (to, property) =>
                {
                    AppendText(to, property.Name);
                    to.Append(": ");
                    Append(to, property.Value);
                }, '}');
                break;
            case JsonValueKind.Array:
                AppendList(text, '[', value.EnumerateArray(), Append, ']');
                break;
            case JsonValueKind.String:
                AppendText(text, value.GetString() ?? "");
                break;
            default:
                text.Append(value.GetRawText());
                break;
        }
    }

    private static void AppendList<T>(StringBuilder text, char open, IEnumerable<T> items, Action<StringBuilder, T> append, char close)
    {
        text.Append(open);
        var isFirst = true;
        foreach (var item in items)
        {
            if (!isFirst) text.Append(", ");
            append(text, item);
            isFirst = false;
        }
        text.Append(close);
    }

    private static void AppendText(StringBuilder text, string value)
    {
        text.Append('"');
        foreach (var letter in value)
        {
            _ = letter switch
            {
                '"' => text.Append("\\\""),
                '\\' => text.Append("\\\\"),
                '\n' => text.Append("\\n"),
                '\r' => text.Append("\\r"),
                '\t' => text.Append("\\t"),
                '\b' => text.Append("\\b"),
                '\f' => text.Append("\\f"),
                < ' ' => text.Append(CultureInfo.InvariantCulture, $"\\u{(int)letter:x4}"),
                _ => text.Append(letter),
            };
        }
        text.Append('"');
    }
}
