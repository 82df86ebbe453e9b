using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using System.Text.Unicode;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Reads and writes small JSON files that decide what is loaded: bounded size and depth, no duplicate or unknown names, no nulls by accident.</summary>
internal static class StrictJson
{
    /// <summary>Largest manifest or index.</summary>
    public const long FileBytesMax = 64L << 20;

    private static readonly JsonSerializerOptions options = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        AllowDuplicateProperties = false,
        UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
        RespectNullableAnnotations = true,
        RespectRequiredConstructorParameters = true,
        MaxDepth = 64,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.SnakeCaseLower, allowIntegerValues: false) },
    };

    /// <summary>UTF-8 JSON in property order, the same bytes for the same value.</summary>
    public static byte[] Write<T>(T value) => JsonSerializer.SerializeToUtf8Bytes(value, options);

    /// <summary>Reads a file of at most 64 MiB.</summary>
    /// <exception cref="ConfigException">The file is missing, unreadable or too large.</exception>
    public static byte[] ReadFile(string path, string code)
    {
        try
        {
            using var handle = File.OpenHandle(path);
            var size = RandomAccess.GetLength(handle);
            if (size > FileBytesMax) throw new ConfigException(code, $"{path} has {size} bytes, at most {FileBytesMax} are read; the file is damaged.");
            var bytes = new byte[size];
            var done = 0;
            while (done < bytes.Length && RandomAccess.Read(handle, bytes.AsSpan(done), done) is > 0 and var count) done += count;
            return bytes[..done];
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException(code, $"{path} cannot be read ({exception.Message.TrimEnd('.')}); check the path and its permissions.");
        }
    }

    /// <summary>Parses JSON; every defect is one error with <paramref name="code"/>.</summary>
    /// <exception cref="ConfigException">Not UTF-8, not JSON, or not of the form of <typeparamref name="T"/>.</exception>
    public static T Parse<T>(ReadOnlySpan<byte> json, string code, string source) where T : class
    {
        if (!Utf8.IsValid(json)) throw new ConfigException(code, $"{source} is not UTF-8 text; the file is damaged.");
        try
        {
            return JsonSerializer.Deserialize<T>(json, options) ?? throw new ConfigException(code, $"{source} holds only `null`; the file is damaged.");
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException or FormatException or NotSupportedException)
        {
            var place = exception is JsonException { Path: { Length: > 0 } path } ? $" at {Printable.Quote(path)}" : "";
            throw new ConfigException(code, $"{source} is not in the expected form{place}: it is damaged or was written by another version.");
        }
    }
}
