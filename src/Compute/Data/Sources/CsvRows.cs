using System.Buffers;
using System.Text;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// Comma-separated rows with a header line (RFC 4180: quotes around fields, doubled inside them, line ends inside quotes). Fields stay text; an
/// empty field is an empty text. Read here rather than by a package because messages name the line and nothing else of csv is needed.
/// </summary>
internal static class CsvRows
{
    /// <summary>Reads the whole file.</summary>
    /// <exception cref="ConfigException">DATA006 (not UTF-8), DATA008 (no rows), DATA012 (not csv).</exception>
    public static MemoryRows Read(string path)
    {
        var bytes = FileBytes.ReadText(path);
        var parser = new Parser(path, bytes);
        var header = parser.Next(out _) ?? throw new ConfigException("DATA008", $"{path} holds no rows: it is empty; check the path.");
        var rows = new List<(int, ReadOnlyMemory<byte>)>();
        while (parser.Next(out var line) is { } fields)
        {
            if (fields.Count == 1 && fields[0].Length == 0 && header.Count > 1) continue;
            if (fields.Count != header.Count)
                throw new ConfigException("DATA012", $"{path}:{line}: {fields.Count} fields where the header has {header.Count}; put quotes around fields " +
                    "that hold commas or line ends.");
            rows.Add((line, ToJson(header, fields)));
        }
        return rows.Count > 0 ? new MemoryRows(path, rows) : throw new ConfigException("DATA008", $"{path} has a header and no rows; check the path.");
    }

    private static ReadOnlyMemory<byte> ToJson(List<string> header, List<string> fields)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using var writer = new Utf8JsonWriter(buffer);
        writer.WriteStartObject();
        for (var i = 0; i < header.Count; i++) writer.WriteString(header[i], fields[i]);
        writer.WriteEndObject();
        writer.Flush();
        return buffer.WrittenMemory;
    }

    private sealed class Parser(string path, byte[] bytes)
    {
        private int _at;
        private int _line = 1;

        /// <summary>Fields of the next record, or null at the end; the 1-based line that it begins in.</summary>
        public List<string>? Next(out int line)
        {
            line = _line;
            if (_at >= bytes.Length) return null;
            var fields = new List<string>();
            do fields.Add(_at < bytes.Length && bytes[_at] == (byte)'"' ? Quoted() : Plain());
            while (Comma());
            return fields;
        }

        private string Plain()
        {
            var rest = bytes.AsSpan(_at);
            var length = rest.IndexOfAny(",\n"u8);
            if (length < 0) length = rest.Length;
            _at += length;
            return Encoding.UTF8.GetString(rest[..length].TrimEnd((byte)'\r'));
        }

        private string Quoted()
        {
            var begin = _line;
            var text = new StringBuilder();
            _at++;
            while (true)
            {
                var length = bytes.AsSpan(_at).IndexOf((byte)'"');
                if (length < 0) throw new ConfigException("DATA012", $"{path}:{begin}: a quoted field has no closing quote; close it or double quotes inside it.");
                text.Append(Encoding.UTF8.GetString(bytes, _at, length));
                _line += bytes.AsSpan(_at, length).Count((byte)'\n');
                _at += length + 1;
                if (_at >= bytes.Length || bytes[_at] != (byte)'"') break;
                text.Append('"');
                _at++;
            }
            if (_at < bytes.Length && bytes[_at] == (byte)'\r') _at++;
            if (_at < bytes.Length && bytes[_at] is not ((byte)',' or (byte)'\n'))
                throw new ConfigException("DATA012", $"{path}:{_line}: text follows the closing quote of a field; double the quotes inside a field.");
            return text.ToString();
        }

        // Steps over what ended a field: true after a comma, false after the end of the record.
        private bool Comma()
        {
            if (_at >= bytes.Length) return false;
            if (bytes[_at++] == (byte)',') return true;
            _line++;
            return false;
        }
    }
}
