using System.Diagnostics.CodeAnalysis;
using Megatron.Compute.Configuration;
using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Data.Sources;

/// <summary>
/// The non-blank lines of a UTF-8 text file, found once and then read by number, so the file itself never has to fit into memory. A byte
/// order mark, CRLF and a missing last newline are fine; a gzip file is recognised by its first bytes and unpacked to a temporary file.
/// </summary>
internal sealed class LineFile : IDisposable
{
    /// <summary>Longest line in bytes. A longer one is a file without line ends rather than a sample.</summary>
    public const int MaxLineBytes = 64 << 20;

    private const int ScanBytes = 1 << 20;
    private static readonly byte[] Blanks = " \t\r"u8.ToArray();

    private readonly SafeFileHandle _file;
    private readonly List<Line> _lines = [];
    private readonly int _maxLineBytes;

    private LineFile(string path, SafeFileHandle file, int maxLineBytes)
    {
        Path = path;
        _file = file;
        _maxLineBytes = maxLineBytes;
    }

    /// <summary>The path as the user wrote it.</summary>
    public string Path { get; }

    /// <summary>Lines that hold more than blanks.</summary>
    public int Count => _lines.Count;

    /// <summary>Opens a file and finds its lines.</summary>
    /// <param name="path">Path of the file, for messages too.</param>
    /// <param name="maxLineBytes"><see cref="MaxLineBytes"/>; less in tests.</param>
    /// <exception cref="ConfigException">DATA006 (UTF-16), DATA008 (nothing in it), DATA012 (damaged gzip).</exception>
    public static LineFile Open(string path, int maxLineBytes)
    {
        var file = FileBytes.Open(path);
        try
        {
            var lines = new LineFile(path, file, maxLineBytes);
            lines.FindLines(FileBytes.SkipByteOrderMark(path, file));
            if (lines.Count == 0)
                throw new ConfigException("DATA008", $"{path} holds no rows: it is {(RandomAccess.GetLength(file) == 0 ? "empty" : "blank")}; check the path.");
            return lines;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>1-based number of the line in the file.</summary>
    public int LineNumber(int index) => _lines[index].Number;

    /// <summary>Reads one line without its end; DATA007 when it is too long, DATA006 when it is no UTF-8 text.</summary>
    public bool TryRead(int index, out ReadOnlyMemory<byte> text, [NotNullWhen(false)] out RowProblem? problem)
    {
        text = default;
        var line = _lines[index];
        if (line.Length > _maxLineBytes)
        {
            problem = new RowProblem("DATA007", "line too long", $"{Path}:{line.Number}",
                $"the line has {line.Length} bytes, more than {_maxLineBytes}; put each row on a line of its own.");
            return false;
        }
        var bytes = new byte[line.Length];
        FileBytes.ReadExactly(_file, bytes, line.Offset);
        problem = FindBadBytes(bytes, line);
        text = bytes;
        return problem is null;
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private void FindLines(long offset)
    {
        var buffer = new byte[ScanBytes];
        var begin = offset;
        var number = 1;
        var blank = true;
        int read;
        while ((read = RandomAccess.Read(_file, buffer, offset)) > 0)
        {
            var rest = buffer.AsSpan(0, read);
            int end;
            while ((end = rest.IndexOf((byte)'\n')) >= 0)
            {
                blank = blank && rest[..end].IndexOfAnyExcept(Blanks) < 0;
                offset += end + 1;
                if (!blank) _lines.Add(new Line(begin, offset - 1 - begin, number));
                rest = rest[(end + 1)..];
                begin = offset;
                blank = true;
                number++;
            }
            blank = blank && rest.IndexOfAnyExcept(Blanks) < 0;
            offset += rest.Length;
        }
        if (!blank) _lines.Add(new Line(begin, offset - begin, number));
    }

    private RowProblem? FindBadBytes(ReadOnlySpan<byte> bytes, Line line)
    {
        var at = FileBytes.FindNoText(bytes, out var what);
        return at < 0 ? null : new RowProblem("DATA006", "not UTF-8 text", $"{Path}:{line.Number}:{at + 1}",
            $"{what}, at byte {line.Offset + at} of the file; save the file as UTF-8 text.");
    }

    private readonly record struct Line(long Offset, long Length, int Number);
}
