using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Reads and writes <c>model.safetensors.index.json</c>: which file holds which tensor.</summary>
internal static class HfIndex
{
    private const string Code = "ST025";

    /// <summary>Bytes as Hugging Face writes them: two spaces of indentation, names sorted, a line feed at the end.</summary>
    public static byte[] Write(long totalBytes, IEnumerable<(string Tensor, string File)> weights)
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream, new JsonWriterOptions { Indented = true, NewLine = "\n", Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            json.WriteStartObject("metadata");
            json.WriteNumber("total_size", totalBytes);
            json.WriteEndObject();
            json.WriteStartObject("weight_map");
            foreach (var (tensor, file) in weights.OrderBy(weight => weight.Tensor, StringComparer.Ordinal)) json.WriteString(tensor, file);
            json.WriteEndObject();
            json.WriteEndObject();
        }
        stream.WriteByte((byte)'\n');
        return stream.ToArray();
    }

    /// <summary>Parses an index; the file names in it are plain names that end in <c>.safetensors</c>.</summary>
    /// <exception cref="ConfigException">ST025: not of the form, or a name that leaves the folder; all bad names are listed.</exception>
    public static IReadOnlyDictionary<string, string> Parse(ReadOnlySpan<byte> bytes, string source)
    {
        var document = StrictJson.Parse<JsonElementHolder>(bytes, Code, source);
        if (document.WeightMap is not { Count: > 0 } map) throw new ConfigException(Code, $"{source} has no weight_map; download it again.");
        var errors = map.Values.Distinct(StringComparer.Ordinal).Where(file => !IsPlainName(file))
            .Select(file => new ConfigError(Code, $"{source} names the file {Printable.Quote(file ?? "null")}; only plain names ending in .safetensors, without a path, are allowed."))
            .ToList();
        return errors.Count == 0 ? map : throw new ConfigException(errors.Count <= 20 ? errors : errors[..20]);
    }

    private static bool IsPlainName(string? file) =>
        file is not null && file.Length is > 12 and <= 255 && file.EndsWith(".safetensors", StringComparison.Ordinal)
        && file[0] != '.' && !file.AsSpan().ContainsAny('/', '\\', '\0') && !file.Any(char.IsControl);

    private sealed class JsonElementHolder
    {
        [System.Text.Json.Serialization.JsonPropertyName("weight_map")]
        public Dictionary<string, string>? WeightMap { get; init; }

        [System.Text.Json.Serialization.JsonExtensionData]
        public Dictionary<string, JsonElement>? Others { get; init; }
    }
}
