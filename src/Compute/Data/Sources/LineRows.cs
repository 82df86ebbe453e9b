using System.Buffers;
using System.Text.Json;

namespace Megatron.Compute.Data.Sources;

/// <summary>One row per line: JSON values (jsonl), or plain text that becomes <c>{"text": line}</c> (txt).</summary>
internal sealed class LineRows(string path, bool plainText) : IRowReader
{
    private readonly LineReader _lines = new(path, ByteReader.MaxRowBytes);
    private int _count;

    /// <inheritdoc/>
    public bool TryRead(out SourceRow row)
    {
        row = default;
        if (!_lines.TryRead(out var line, out var problem)) return false;
        var json = plainText && problem is null ? ToJson(line.Span) : line;
        row = new SourceRow(path, _count++, _lines.LineNumber, json, problem) { Offset = plainText ? -1 : _lines.Offset };
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() => _lines.Dispose();

    private static ReadOnlyMemory<byte> ToJson(ReadOnlySpan<byte> line)
    {
        var buffer = new ArrayBufferWriter<byte>(line.Length + 16);
        using var writer = new Utf8JsonWriter(buffer);
        writer.WriteStartObject();
        writer.WriteString("text"u8, line.TrimEnd((byte)'\r'));
        writer.WriteEndObject();
        writer.Flush();
        return buffer.WrittenMemory;
    }
}
