using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>Reads a <c>.json</c> file whose top is an array of rows. The whole file is held in memory.</summary>
internal static class JsonArrayReader
{
    /// <summary>True when the first character that is no blank is <c>[</c>.</summary>
    public static bool IsArray(string path)
    {
        using var file = FileBytes.Open(path);
        var offset = FileBytes.SkipByteOrderMark(path, file);
        var buffer = new byte[4096];
        int read;
        while ((read = RandomAccess.Read(file, buffer, offset)) > 0)
        {
            var text = buffer.AsSpan(0, read).TrimStart(" \t\r\n"u8);
            if (!text.IsEmpty) return text[0] == (byte)'[';
            offset += read;
        }
        return false;
    }

    /// <summary>Splits the array into its elements.</summary>
    /// <exception cref="ConfigException">DATA001 (not JSON), DATA006 (not UTF-8), DATA008 (empty), DATA011 (too large).</exception>
    public static MemoryRows Read(string path)
    {
        var bytes = FileBytes.ReadText(path);
        try
        {
            var rows = Split(bytes);
            return rows.Count > 0 ? new MemoryRows(path, rows) : throw new ConfigException("DATA008", $"{path} holds an empty array; check the path.");
        }
        catch (JsonException e)
        {
            throw new ConfigException("DATA001", $"{path}:{e.LineNumber + 1}:{e.BytePositionInLine + 1}: invalid JSON ({JsonText.Explain(e)}); correct the file.");
        }
    }

    private static List<(int Line, ReadOnlyMemory<byte> Json)> Split(byte[] bytes)
    {
        var rows = new List<(int, ReadOnlyMemory<byte>)>();
        var reader = new Utf8JsonReader(bytes);
        reader.Read();
        var line = 1;
        var counted = 0;
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            var begin = (int)reader.TokenStartIndex;
            line += bytes.AsSpan(counted, begin - counted).Count((byte)'\n');
            counted = begin;
            reader.Skip();
            rows.Add((line, bytes.AsMemory(begin, (int)reader.BytesConsumed - begin)));
        }
        // The reader finds what follows the array: anything but blanks is a JsonException.
        reader.Read();
        return rows;
    }
}
