using System.Buffers;
using System.Diagnostics.CodeAnalysis;
using System.Text.Json;

namespace Megatron.Compute.Data.Sources;

/// <summary>One row per line: JSON values (jsonl), or plain text that becomes <c>{"text": line}</c> (txt).</summary>
internal sealed class LineRows(LineFile file, bool plainText) : IRowSource
{
    /// <inheritdoc/>
    public int Count => file.Count;

    /// <inheritdoc/>
    public string Position(int index) => $"{file.Path}:{file.LineNumber(index)}";

    /// <inheritdoc/>
    public bool TryRead(int index, out ReadOnlyMemory<byte> json, [NotNullWhen(false)] out RowProblem? problem)
    {
        if (!file.TryRead(index, out json, out problem)) return false;
        if (plainText) json = ToJson(json.Span);
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() => file.Dispose();

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
