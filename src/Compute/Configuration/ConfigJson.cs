using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace Megatron.Compute.Configuration;

/// <summary>The canonical JSON of <see cref="TrainingConfig"/>, and the conversion of JSON values to option values.</summary>
public static class ConfigJson
{
    private static readonly JsonWriterOptions WriterOptions = new()
    {
        Indented = true,
        NewLine = "\n",
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping, // names and prompts stay readable in args.json; nothing here enters HTML
    };

    private static readonly JsonDocumentOptions ReaderOptions = new() { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true };

    internal static string Write(TrainingConfig config)
    {
        using var stream = new MemoryStream();
        using (var writer = new Utf8JsonWriter(stream, WriterOptions))
        {
            writer.WriteStartObject();
            foreach (var option in OptionCatalog.All)
            {
                writer.WritePropertyName(option.Name);
                WriteValue(writer, option, option.Get(config));
            }

            writer.WriteEndObject();
        }

        return Encoding.UTF8.GetString(stream.GetBuffer(), 0, (int)stream.Length) + "\n";
    }

    internal static TrainingConfig Read(string json)
    {
        var errors = new List<ConfigError>();
        var values = new Dictionary<string, object?>(StringComparer.Ordinal);
        using var document = ParseObject(json, "the configuration");
        foreach (var property in document.RootElement.EnumerateObject())
        {
            var option = OptionCatalog.Find(property.Name, trainingVerb: false);
            if (option is null) errors.Add(UnknownOption(property.Name));
            else if (TryConvert(option, property.Value, out var value, out var problem)) values[option.Name] = value;
            else errors.Add(problem);
        }

        if (errors.Count > 0) throw new ConfigException(errors);
        return OptionCatalog.With(new TrainingConfig(), values);
    }

    /// <summary>Parses a JSON object.</summary>
    /// <exception cref="ConfigException">CFG002: it is none; the message names <paramref name="what"/> and the line.</exception>
    public static JsonDocument ParseObject(string json, string what)
    {
        try
        {
            var document = JsonDocument.Parse(json, ReaderOptions);
            if (document.RootElement.ValueKind == JsonValueKind.Object) return document;
            var kind = document.RootElement.ValueKind;
            document.Dispose();
            throw new ConfigException("CFG002", $"{what} is a JSON {kind}; give an object such as {{\"lr\": 1e-5}}.");
        }
        catch (JsonException exception)
        {
            throw new ConfigException("CFG002", $"{what} is not valid JSON in line {exception.LineNumber + 1}; correct it there.");
        }
    }

    /// <summary>The error for a name that no option has, with the nearest known name.</summary>
    public static ConfigError UnknownOption(string name)
    {
        var near = OptionCatalog.Suggest(name);
        return new ConfigError("CFG001", near is null
            ? $"--{name} is not an option; see megatron sft --help for all options."
            : $"--{name} is not an option; did you mean --{near}?");
    }

    /// <summary>Converts a JSON value to the type of <paramref name="option"/>; null leaves a nullable option empty.</summary>
    public static bool TryConvert(OptionInfo option, JsonElement element, out object? value, out ConfigError problem)
    {
        value = null;
        problem = None;
        switch (element.ValueKind)
        {
            case JsonValueKind.Null when option.IsNullable:
                return true;
            case JsonValueKind.Null when option.Kind is OptionKind.TextList or OptionKind.NumberList:
                value = option.Default;
                return true;
            case JsonValueKind.Object or JsonValueKind.Array when option.Kind == OptionKind.Json:
                value = JsonSerializer.Serialize(element, Compact);
                return true;
            case JsonValueKind.Array when option.Kind is OptionKind.TextList or OptionKind.NumberList:
                return OptionValue.TryParse(option, [.. element.EnumerateArray().Select(Text)], out value, out problem);
            case JsonValueKind.String or JsonValueKind.Number or JsonValueKind.True or JsonValueKind.False:
                return OptionValue.TryParse(option, [Text(element)], out value, out problem);
            default:
                problem = OptionValue.WrongType(option, element.GetRawText());
                return false;
        }
    }

    internal static readonly JsonSerializerOptions Compact = new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };
    private static readonly ConfigError None = new("", "");

    private static string Text(JsonElement element) =>
        element.ValueKind == JsonValueKind.String ? element.GetString() ?? "" : element.GetRawText();

    private static void WriteValue(Utf8JsonWriter writer, OptionInfo option, object? value)
    {
        switch (value)
        {
            case null: writer.WriteNullValue(); break;
            case string json when option.Kind == OptionKind.Json: writer.WriteRawValue(Compacted(json)); break;
            case string text: writer.WriteStringValue(text); break;
            case bool flag: writer.WriteBooleanValue(flag); break;
            case int number: writer.WriteNumberValue(number); break;
            case double number: WriteNumber(writer, number); break;
            case IReadOnlyList<string> texts:
                writer.WriteStartArray();
                foreach (var text in texts) writer.WriteStringValue(text);
                writer.WriteEndArray();
                break;
            case IReadOnlyList<double> numbers:
                writer.WriteStartArray();
                foreach (var number in numbers) WriteNumber(writer, number);
                writer.WriteEndArray();
                break;
            default: throw new InvalidOperationException($"Option {option.Name} holds a {value.GetType()}.");
        }
    }

    /// <summary>One spelling for one JSON value, so that equal configurations have equal text.</summary>
    private static string Compacted(string json)
    {
        using var document = JsonDocument.Parse(json);
        return JsonSerializer.Serialize(document.RootElement, Compact);
    }

    /// <summary>NaN and infinities have no JSON form: written as text, so that a configuration with a mistake can still be shown.</summary>
    private static void WriteNumber(Utf8JsonWriter writer, double number)
    {
        if (double.IsFinite(number)) writer.WriteNumberValue(number);
        else writer.WriteStringValue(number.ToString(System.Globalization.CultureInfo.InvariantCulture));
    }
}
