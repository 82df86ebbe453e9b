using System.Text.Json;

namespace Megatron.Compute.Data.Rows;

/// <summary>
/// The columns of one row by name: letter case does not count, a <c>--columns</c> mapping goes first, a null value is as good as no column.
/// </summary>
internal sealed class RowColumns
{
    /// <summary>Names under which the list of messages is accepted.</summary>
    public static readonly string[] Messages = ["messages", "conversation", "conversations"];

    /// <summary>Names of the system prompt.</summary>
    public static readonly string[] System = ["system", "system_prompt"];

    /// <summary>Names of the question.</summary>
    public static readonly string[] Query = ["query", "prompt", "input", "instruction", "question", "problem"];

    /// <summary>Names of the answer.</summary>
    public static readonly string[] Response =
        ["response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion", "content"];

    private readonly Dictionary<string, JsonElement> _columns = new(StringComparer.OrdinalIgnoreCase);

    public RowColumns(JsonElement row, IReadOnlyDictionary<string, string> renames)
    {
        foreach (var property in row.EnumerateObject())
        {
            var name = renames.GetValueOrDefault(property.Name, property.Name);
            if (property.Value.ValueKind == JsonValueKind.Null) continue;
            if (!_columns.TryAdd(name, property.Value))
                throw new RowException("DATA003", "two columns with one name", $"two columns are called \"{name}\" (letter case does not count); rename one.");
        }
    }

    /// <summary>Names of the columns that hold something, for messages.</summary>
    public string Names => _columns.Count == 0 ? "none" : string.Join(", ", _columns.Keys);

    /// <summary>True when a column of this name holds something.</summary>
    public bool Has(string name) => _columns.ContainsKey(name);

    /// <summary>The value of a column, or null.</summary>
    public JsonElement? Get(string name) => _columns.TryGetValue(name, out var value) ? value : null;

    /// <summary>
    /// The one column that goes by any of the names: the first name if it is there, else the only other that is there. Two candidates are
    /// ambiguous and then none is taken.
    /// </summary>
    public (string Name, JsonElement Value)? Find(string[] names)
    {
        if (_columns.TryGetValue(names[0], out var exact)) return (names[0], exact);
        (string, JsonElement)? found = null;
        foreach (var name in names)
        {
            if (!_columns.TryGetValue(name, out var value)) continue;
            if (found is not null) return null;
            found = (name, value);
        }
        return found;
    }
}
