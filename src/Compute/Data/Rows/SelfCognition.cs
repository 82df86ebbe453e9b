using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Rows;

/// <summary>
/// Fills <c>{{NAME}}</c> and <c>{{AUTHOR}}</c> of self-cognition rows: the Chinese value where the row's <c>tag</c> is zh, else the English
/// one. A single value serves both; what is not given leaves its placeholder as it is.
/// </summary>
internal sealed class SelfCognition
{
    private readonly (string Zh, string En)? _name;
    private readonly (string Zh, string En)? _author;

    /// <exception cref="ConfigException">DATA010: more than two values.</exception>
    public SelfCognition(IReadOnlyList<string> modelName, IReadOnlyList<string> modelAuthor)
    {
        _name = Pair("model_name", modelName);
        _author = Pair("model_author", modelAuthor);
    }

    /// <summary>The messages with the placeholders filled.</summary>
    public List<ChatMessage> Apply(List<ChatMessage> messages, string? tag)
    {
        if (_name is null && _author is null) return messages;
        var chinese = tag == "zh";
        for (var i = 0; i < messages.Count; i++)
            messages[i] = messages[i] with { Content = Fill(messages[i].Content, chinese) };
        return messages;
    }

    private string Fill(string text, bool chinese)
    {
        if (!text.Contains("{{", StringComparison.Ordinal)) return text;
        var filled = new StringBuilder(text);
        if (_name is { } name) filled.Replace("{{NAME}}", chinese ? name.Zh : name.En);
        if (_author is { } author) filled.Replace("{{AUTHOR}}", chinese ? author.Zh : author.En);
        return filled.ToString();
    }

    private static (string, string)? Pair(string option, IReadOnlyList<string> values) => values.Count switch
    {
        0 => null,
        1 => (values[0], values[0]),
        2 => (values[0], values[1]),
        _ => throw new ConfigException("DATA010", $"{option} has {values.Count} values; give one, or a Chinese and an English one."),
    };
}
