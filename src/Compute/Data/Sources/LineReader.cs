namespace Megatron.Compute.Data.Sources;

/// <summary>
/// The non-blank lines of a UTF-8 text file, one after another. A byte order mark, CRLF and a missing last newline are fine. A line beyond the
/// longest is passed over without being held.
/// </summary>
internal sealed class LineReader : IDisposable
{
    private static readonly byte[] Blanks = " \t\r"u8.ToArray();

    private readonly ByteReader _bytes;
    private readonly int _maxLineBytes;

    /// <param name="path">The file.</param>
    /// <param name="maxLineBytes"><see cref="ByteReader.MaxRowBytes"/>; less in tests.</param>
    /// <exception cref="Configuration.ConfigException">As <see cref="ByteReader(string)"/>.</exception>
    public LineReader(string path, int maxLineBytes) => (_bytes, _maxLineBytes) = (new ByteReader(path), maxLineBytes);

    /// <summary>1-based number of the line read last.</summary>
    public int LineNumber { get; private set; }

    /// <summary>Offset of its first byte in the file; −1 when the file is packed.</summary>
    public long Offset { get; private set; }

    /// <summary>Reads the next line that is not blank; false at the end.</summary>
    /// <param name="line">Its bytes without the line end; empty when there is a problem.</param>
    /// <param name="problem">DATA007 when it is too long, DATA006 when it is no UTF-8 text.</param>
    public bool TryRead(out ReadOnlyMemory<byte> line, out RowProblem? problem)
    {
        while (true)
        {
            var begin = _bytes.Offset;
            var length = FindEnd(out var skipped);
            if (length == 0 && skipped == 0 && _bytes.IsAtEnd && _bytes.Unread.IsEmpty)
            {
                (line, problem) = (default, null);
                return false;
            }
            LineNumber++;
            Offset = _bytes.IsPacked ? -1 : begin;
            var text = _bytes.Unread[..length];
            var isBlank = skipped == 0 && text.IndexOfAnyExcept(Blanks) < 0;
            (line, problem) = isBlank ? (default, null) : skipped > 0 ? (default, TooLong(skipped + length)) : Take(text, begin);
            _bytes.Skip(length < _bytes.Unread.Length ? length + 1 : length);
            if (!isBlank) return true;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _bytes.Dispose();

    /// <summary>Length of the rest of the line in the window, and bytes of it that were dropped before because it is too long.</summary>
    private int FindEnd(out long skipped)
    {
        skipped = 0;
        var searched = 0;
        while (true)
        {
            var end = _bytes.Unread[searched..].IndexOf((byte)'\n');
            if (end >= 0)
            {
                var length = searched + end;
                if (skipped == 0 && length > _maxLineBytes) Drop(length, ref skipped, ref length);
                return length;
            }
            searched = _bytes.Unread.Length;
            if (searched > _maxLineBytes)
            {
                Drop(searched, ref skipped, ref searched);
            }
            if (!_bytes.Fill()) return _bytes.Unread.Length;
        }
    }

    private void Drop(int count, ref long skipped, ref int left)
    {
        skipped += count;
        _bytes.Skip(count);
        left = 0;
    }

    private (ReadOnlyMemory<byte>, RowProblem?) Take(ReadOnlySpan<byte> text, long begin)
    {
        var at = TextBytes.FindNoText(text, out var what);
        return at < 0
            ? (text.ToArray(), null)
            : (default, new RowProblem("DATA006", "not UTF-8 text", FormattableString.Invariant($"{_bytes.Path}:{LineNumber}:{at + 1}"),
                FormattableString.Invariant($"{what}, at byte {begin + at} of the {(_bytes.IsPacked ? "unpacked file" : "file")}; save the file as UTF-8 text.")));
    }

    private RowProblem TooLong(long length) => new("DATA007", "line too long", FormattableString.Invariant($"{_bytes.Path}:{LineNumber}"),
        FormattableString.Invariant($"the line has {length} bytes, more than {_maxLineBytes}; put each row on a line of its own."));
}
