using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Data.Sources;

/// <summary>The elements of a <c>.json</c> file whose top is an array of rows; one element is held at a time.</summary>
internal sealed class JsonArrayRows : IRowReader
{
    private static readonly byte[] Blanks = " \t\r\n"u8.ToArray();

    private readonly ByteReader _bytes;
    private int _count;
    private int _line = 1;
    private long _lineBegin;
    private bool _isClosed;

    private JsonArrayRows(ByteReader bytes) => (_bytes, _lineBegin) = (bytes, bytes.Offset);

    /// <summary>A reader when the first character that is no blank is <c>[</c>; null when the file must be read by lines.</summary>
    public static JsonArrayRows? TryOpen(string path)
    {
        var bytes = new ByteReader(path);
        try
        {
            var rows = new JsonArrayRows(bytes);
            if (rows.NextCharacter() == (byte)'[')
            {
                rows.Advance(1);
                return rows;
            }
        }
        catch
        {
            bytes.Dispose();
            throw;
        }
        bytes.Dispose();
        return null;
    }

    /// <inheritdoc/>
    /// <exception cref="ConfigException">DATA001 (not JSON), DATA006 (not UTF-8), DATA007 (an element too long).</exception>
    public bool TryRead(out SourceRow row)
    {
        row = default;
        if (_isClosed) return false;
        var next = NextCharacter();
        if (next == (byte)']')
        {
            Close();
            return false;
        }
        if (_count > 0)
        {
            if (next != (byte)',') throw Invalid("a comma or ] is missing");
            Advance(1);
            NextCharacter();
        }
        var length = ElementLength();
        var bad = TextBytes.FindNoText(_bytes.Unread[..length], out var what);
        if (bad >= 0) throw NoText(bad, what);
        row = new SourceRow(_bytes.Path, _count++, _line, _bytes.Unread[..length].ToArray(), Problem: null);
        Advance(length);
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() => _bytes.Dispose();

    private void Close()
    {
        Advance(1);
        if (NextCharacter() is not null) throw Invalid("something follows the array");
        _isClosed = true;
    }

    /// <summary>Skips blanks; the character after them, which stays unread, or null at the end.</summary>
    private byte? NextCharacter()
    {
        while (true)
        {
            var at = _bytes.Unread.IndexOfAnyExcept(Blanks);
            if (at >= 0)
            {
                Advance(at);
                return _bytes.Unread[0];
            }
            Advance(_bytes.Unread.Length);
            if (!_bytes.Fill()) return null;
        }
    }

    /// <summary>Bytes of the JSON value that the unread bytes begin with.</summary>
    private int ElementLength()
    {
        while (true)
        {
            var reader = new Utf8JsonReader(_bytes.Unread, isFinalBlock: _bytes.IsAtEnd, state: default);
            try
            {
                if (reader.Read() && reader.TrySkip()) return checked((int)reader.BytesConsumed);
            }
            catch (JsonException e)
            {
                // A NUL or a byte that is no UTF-8 is the better explanation.
                var bad = TextBytes.FindNoText(_bytes.Unread, out var what);
                if (bad >= 0 && bad <= reader.BytesConsumed + 1) throw NoText(bad, what);
                var line = _line + (e.LineNumber ?? 0);
                var column = (e.BytePositionInLine ?? 0) + (e.LineNumber is null or 0 ? _bytes.Offset - _lineBegin : 0);
                throw new ConfigException("DATA001", FormattableString.Invariant($"{_bytes.Path}:{line}:{column + 1}: invalid JSON ({JsonText.Explain(e)}); correct the file."));
            }
            if (_bytes.Unread.Length > ByteReader.MaxRowBytes)
                throw new ConfigException("DATA007", FormattableString.Invariant($"{_bytes.Path}:{_line}: a row has more than {ByteReader.MaxRowBytes} bytes; split it."));
            if (!_bytes.Fill()) { } // the next turn knows that nothing follows and says what is missing
        }
    }

    private void Advance(int count)
    {
        var passed = _bytes.Unread[..count];
        var last = passed.LastIndexOf((byte)'\n');
        if (last >= 0)
        {
            _line += passed.Count((byte)'\n');
            _lineBegin = _bytes.Offset + last + 1;
        }
        _bytes.Skip(count);
    }

    private ConfigException Invalid(string what) => new("DATA001",
        FormattableString.Invariant($"{_bytes.Path}:{_line}:{_bytes.Offset - _lineBegin + 1}: invalid JSON ({what}); correct the file."));

    private ConfigException NoText(int at, string what) => new("DATA006", FormattableString.Invariant(
        $"{_bytes.Path}:{_line + _bytes.Unread[..at].Count((byte)'\n')}: {what}, at byte {_bytes.Offset + at} of the file; save the file as UTF-8."));
}
