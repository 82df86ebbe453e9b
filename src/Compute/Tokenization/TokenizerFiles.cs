using System.IO.Compression;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tokenization;

/// <summary>Reads the JSON files of a tokenizer folder with one clear error for each way that can fail.</summary>
internal static class TokenizerFiles
{
    /// <summary>Largest file read; the largest known tokenizers have 30 MB. Guards against a compressed bomb.</summary>
    private const int MaxBytes = 256 << 20;

    /// <summary>
    /// Parses <paramref name="name"/> or <paramref name="name"/>.gz in a folder and maps it; null when neither exists.
    /// Throws <see cref="ConfigException"/> TOK002 when the file cannot be read or is not what <paramref name="map"/> expects.
    /// </summary>
    public static T? Read<T>(string folder, string name, Func<JsonElement, T> map)
        where T : class
    {
        var path = Path.Combine(folder, name);
        if (!File.Exists(path))
            path += ".gz";
        if (!File.Exists(path))
            return null;
        try
        {
            using var document = JsonDocument.Parse(ReadBytes(path));
            return map(document.RootElement);
        }
        catch (JsonException error)
        {
            throw Refuse(path, $"is not valid JSON ({error.Message})");
        }
        catch (Exception error) when (error is IOException or InvalidDataException or UnauthorizedAccessException)
        {
            throw Refuse(path, $"cannot be read ({error.Message})");
        }
        catch (Exception error) when (error is InvalidOperationException or KeyNotFoundException or FormatException)
        {
            throw Refuse(path, $"does not have the form of a Hugging Face {name} ({error.Message})");
        }
    }

    /// <summary>
    /// The content of <paramref name="name"/> in a folder, or of <paramref name="name"/>.gz without its compression: programs that load a
    /// model folder look for the plain file. Null when neither exists.
    /// </summary>
    /// <exception cref="IOException">The file cannot be read or unpacked: for who copies it, a disk that fails like any other.</exception>
    public static byte[]? Content(string folder, string name)
    {
        var path = Path.Combine(folder, name);
        if (!File.Exists(path) && !File.Exists(path += ".gz")) return null;
        try
        {
            return ReadBytes(path).ToArray();
        }
        catch (InvalidDataException damaged)
        {
            throw new IOException($"{path} cannot be unpacked ({damaged.Message.TrimEnd('.')}).", damaged);
        }
    }

    private static ConfigException Refuse(string path, string why) =>
        new("TOK002", $"Tokenizer file {path} {why.TrimEnd('.')}; copy the file again from its source.");

    private static ReadOnlyMemory<byte> ReadBytes(string path)
    {
        using var file = File.OpenRead(path);
        using Stream stream = path.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionMode.Decompress) : file;
        using var bytes = new MemoryStream();
        var chunk = new byte[1 << 16];
        for (int count; (count = stream.Read(chunk)) > 0;)
        {
            bytes.Write(chunk, 0, count);
            if (bytes.Length > MaxBytes)
                throw new InvalidDataException($"it is larger than {MaxBytes >> 20} MiB");
        }

        return bytes.GetBuffer().AsMemory(0, (int)bytes.Length);
    }
}
