using Megatron.Compute.Configuration;
using ZstdSharp;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// A window on the unpacked bytes of a file: it grows while a row is being looked for and moves on behind it. A UTF-8 byte order mark is skipped.
/// </summary>
internal sealed class ByteReader : IDisposable
{
    /// <summary>Longest row in bytes. A longer one is a file without line ends rather than a sample.</summary>
    public const int MaxRowBytes = 64 << 20;

    private const int BlockBytes = 1 << 20;

    private readonly Stream _stream;
    private byte[] _buffer = new byte[BlockBytes];
    private int _begin;
    private int _end;

    /// <exception cref="ConfigException">DATA006 (UTF-16), DATA009 (cannot be opened), DATA012 (damaged archive).</exception>
    public ByteReader(string path)
    {
        Path = path;
        _stream = DataStream.Open(path, out var isPacked);
        IsPacked = isPacked;
        try
        {
            while (_end < 3 && Fill()) { }
            if (Unread is [0xFF, 0xFE, ..] or [0xFE, 0xFF, ..])
                throw new ConfigException("DATA006", $"{path} is UTF-16 text (byte order mark at byte 0); save it as UTF-8.");
            if (Unread is [0xEF, 0xBB, 0xBF, ..]) Skip(3);
        }
        catch
        {
            _stream.Dispose();
            throw;
        }
    }

    /// <summary>The path as the user wrote it.</summary>
    public string Path { get; }

    /// <summary>True when <see cref="Offset"/> counts unpacked bytes.</summary>
    public bool IsPacked { get; }

    /// <summary>What was read from the file and not yet skipped.</summary>
    public ReadOnlySpan<byte> Unread => _buffer.AsSpan(_begin.._end);

    /// <summary>Offset of the first unread byte.</summary>
    public long Offset { get; private set; }

    /// <summary>True when nothing follows the unread bytes.</summary>
    public bool IsAtEnd { get; private set; }

    /// <summary>Reads more behind <see cref="Unread"/>; false at the end of the file.</summary>
    /// <exception cref="ConfigException">DATA012: the archive is damaged or cut off.</exception>
    public bool Fill()
    {
        if (IsAtEnd) return false;
        if (_begin > 0 && _end - _begin < _buffer.Length / 2)
        {
            _buffer.AsSpan(_begin.._end).CopyTo(_buffer);
            (_begin, _end) = (0, _end - _begin);
        }
        if (_end == _buffer.Length) Array.Resize(ref _buffer, 2 * _buffer.Length);
        try
        {
            var read = _stream.Read(_buffer.AsSpan(_end));
            _end += read;
            IsAtEnd = read == 0;
            return read > 0;
        }
        catch (Exception e) when (e is InvalidDataException or EndOfStreamException or ZstdException)
        {
            throw new ConfigException("DATA012", $"{Path} is a damaged or cut off archive, after {Offset + (_end - _begin)} unpacked bytes ({e.Message}); fetch or pack it again.");
        }
        catch (IOException e)
        {
            throw new ConfigException("DATA009", $"{Path} cannot be read: {e.Message}");
        }
    }

    /// <summary>Moves on.</summary>
    public void Skip(int count)
    {
        _begin += count;
        Offset += count;
    }

    /// <inheritdoc/>
    public void Dispose() => _stream.Dispose();
}
