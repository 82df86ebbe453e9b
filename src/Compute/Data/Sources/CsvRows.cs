using System.Buffers;
using System.Text;
using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// Comma-separated rows with a header line (RFC 4180: quotes around fields, doubled inside them, line ends inside quotes). Fields stay text; an
/// empty field is an empty text. Read here rather than by a package because messages name the line and nothing else of csv is needed.
/// </summary>
internal sealed class CsvRows : IRowReader
{
    private readonly ByteReader _bytes;
    private readonly List<string> _header;
    private int _line = 1;
    private int _count;

    /// <exception cref="ConfigException">DATA006 (not UTF-8), DATA008 (nothing in it), DATA012 (not csv).</exception>
    public CsvRows(string path)
    {
        _bytes = new ByteReader(path);
        try
        {
            _header = NextRecord(out _) ?? throw new ConfigException("DATA008", $"{path} holds no rows: it is empty; check the path.");
        }
        catch
        {
            _bytes.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    /// <exception cref="ConfigException">DATA006 (not UTF-8), DATA012 (not csv).</exception>
    public bool TryRead(out SourceRow row)
    {
        row = default;
        while (NextRecord(out var line) is { } fields)
        {
            if (fields.Count == 1 && fields[0].Length == 0 && _header.Count > 1) continue;
            if (fields.Count != _header.Count)
                throw new ConfigException("DATA012", $"{_bytes.Path}:{line}: {fields.Count} fields where the header has {_header.Count}; put quotes around fields " +
                    "that hold commas or line ends.");
            row = new SourceRow(_bytes.Path, _count++, line, ToJson(fields), Problem: null);
            return true;
        }
        return false;
    }

    /// <inheritdoc/>
    public void Dispose() => _bytes.Dispose();

    private ReadOnlyMemory<byte> ToJson(List<string> fields)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using var writer = new Utf8JsonWriter(buffer);
        writer.WriteStartObject();
        for (var i = 0; i < _header.Count; i++) writer.WriteString(_header[i], fields[i]);
        writer.WriteEndObject();
        writer.Flush();
        return buffer.WrittenMemory;
    }

    /// <summary>Fields of the next record, or null at the end; the 1-based line that it begins in.</summary>
    private List<string>? NextRecord(out int line)
    {
        line = _line;
        while (true)
        {
            var record = new Record(_bytes, _line);
            if (_bytes.IsAtEnd && _bytes.Unread.IsEmpty) return null;
            if (record.TryRead(out var fields))
            {
                var bad = TextBytes.FindNoText(_bytes.Unread[..record.Length], out var what);
                if (bad >= 0)
                    throw new ConfigException("DATA006", $"{_bytes.Path}:{_line + _bytes.Unread[..bad].Count((byte)'\n')}: {what}, at byte {_bytes.Offset + bad} of the file; " +
                        "save the file as UTF-8.");
                _line = record.Line;
                _bytes.Skip(record.Length);
                return fields;
            }
            if (_bytes.Unread.Length > ByteReader.MaxRowBytes)
                throw new ConfigException("DATA007", $"{_bytes.Path}:{_line}: a row has more than {ByteReader.MaxRowBytes} bytes; close its quotes or split it.");
            _bytes.Fill();
        }
    }

    /// <summary>One record at the beginning of the unread bytes.</summary>
    private ref struct Record(ByteReader bytes, int line)
    {
        private readonly ReadOnlySpan<byte> _text = bytes.Unread;

        /// <summary>Bytes read so far.</summary>
        public int Length { get; private set; }

        /// <summary>Line reached.</summary>
        public int Line { get; private set; } = line;

        /// <summary>Reads the fields; false when the record goes on behind the window.</summary>
        public bool TryRead(out List<string> fields)
        {
            fields = [];
            while (true)
            {
                var isQuoted = Length < _text.Length && _text[Length] == (byte)'"';
                if ((isQuoted ? Quoted() : Plain()) is not { } field) return false;
                fields.Add(field);
                if (Length >= _text.Length) return bytes.IsAtEnd;
                if (_text[Length++] == (byte)',') continue;
                Line++;
                return true;
            }
        }

        private string? Plain()
        {
            var rest = _text[Length..];
            var length = rest.IndexOfAny(",\n"u8);
            if (length < 0 && !bytes.IsAtEnd) return null;
            if (length < 0) length = rest.Length;
            Length += length;
            return Encoding.UTF8.GetString(rest[..length].TrimEnd((byte)'\r'));
        }

        private string? Quoted()
        {
            var begin = Line;
            var text = new StringBuilder();
            Length++;
            while (true)
            {
                var length = _text[Length..].IndexOf((byte)'"');
                if (length < 0 && bytes.IsAtEnd)
                    throw new ConfigException("DATA012", $"{bytes.Path}:{begin}: a quoted field has no closing quote; close it or double quotes inside it.");
                if (length < 0) return null;
                text.Append(Encoding.UTF8.GetString(_text.Slice(Length, length)));
                Line += _text.Slice(Length, length).Count((byte)'\n');
                Length += length + 1;
                if (Length >= _text.Length && !bytes.IsAtEnd) return null;
                if (Length >= _text.Length || _text[Length] != (byte)'"') break;
                text.Append('"');
                Length++;
            }
            if (Length < _text.Length && _text[Length] == (byte)'\r') Length++;
            if (Length < _text.Length && _text[Length] is not ((byte)',' or (byte)'\n'))
                throw new ConfigException("DATA012", $"{bytes.Path}:{Line}: text follows the closing quote of a field; double the quotes inside a field.");
            return text.ToString();
        }
    }
}
