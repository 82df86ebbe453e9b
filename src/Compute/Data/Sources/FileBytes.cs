using System.Buffers;
using System.IO.Compression;
using System.Text;
using System.Text.Unicode;
using Megatron.Compute.Configuration;
using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Data.Sources;

/// <summary>Opening data files: gzip by its first bytes, byte order marks, whole reads.</summary>
internal static class FileBytes
{
    /// <summary>Opens a file for reading; a gzip file is unpacked into a temporary file that vanishes with the handle.</summary>
    /// <exception cref="ConfigException">DATA009 (cannot be opened), DATA012 (damaged gzip).</exception>
    public static SafeFileHandle Open(string path)
    {
        SafeFileHandle file;
        try
        {
            file = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read, FileOptions.SequentialScan);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DATA009", $"{path} cannot be read: {e.Message}");
        }
        Span<byte> magic = stackalloc byte[2];
        if (RandomAccess.Read(file, magic, 0) < 2 || magic[0] != 0x1F || magic[1] != 0x8B) return file;
        using (file) return Unpack(path, file);
    }

    /// <summary>Offset of the first byte of text: 3 after a UTF-8 byte order mark, else 0.</summary>
    /// <exception cref="ConfigException">DATA006: the file is UTF-16.</exception>
    public static long SkipByteOrderMark(string path, SafeFileHandle file)
    {
        Span<byte> mark = stackalloc byte[3];
        var read = RandomAccess.Read(file, mark, 0);
        if (read >= 2 && (mark[0], mark[1]) is (0xFF, 0xFE) or (0xFE, 0xFF))
            throw new ConfigException("DATA006", $"{path} is UTF-16 text (byte order mark at byte 0); save it as UTF-8.");
        return read == 3 && mark.SequenceEqual("\uFEFF"u8) ? 3 : 0;
    }

    /// <summary>Fills the buffer from the given offset.</summary>
    /// <exception cref="EndOfStreamException">The file became shorter since it was opened.</exception>
    public static void ReadExactly(SafeFileHandle file, Span<byte> buffer, long offset)
    {
        while (!buffer.IsEmpty)
        {
            var read = RandomAccess.Read(file, buffer, offset);
            if (read == 0) throw new EndOfStreamException($"the file ended at byte {offset}: it was changed while it was read");
            buffer = buffer[read..];
            offset += read;
        }
    }

    /// <summary>The whole of a text file without its byte order mark.</summary>
    /// <exception cref="ConfigException">DATA006 (not UTF-8), DATA011 (more than an array can hold).</exception>
    public static byte[] ReadText(string path)
    {
        using var file = Open(path);
        var offset = SkipByteOrderMark(path, file);
        var length = RandomAccess.GetLength(file) - offset;
        if (length > Array.MaxLength)
            throw new ConfigException("DATA011", $"{path} has {length} bytes, too many to be read as a whole; convert it to jsonl (one row per line).");
        var bytes = new byte[length];
        ReadExactly(file, bytes, offset);
        var bad = FindNoText(bytes, out var what);
        return bad < 0 ? bytes : throw new ConfigException("DATA006",
            $"{path}:{1 + bytes.AsSpan(0, bad).Count((byte)'\n')}: {what}, at byte {offset + bad} of the file; save the file as UTF-8.");
    }

    /// <summary>Offset of the first NUL or byte that is not UTF-8 and what it is, or −1.</summary>
    public static int FindNoText(ReadOnlySpan<byte> bytes, out string what)
    {
        var at = bytes.IndexOf((byte)0);
        what = "a NUL byte";
        if (at >= 0 || Utf8.IsValid(bytes)) return at;
        at = 0;
        while (Rune.DecodeFromUtf8(bytes[at..], out _, out var consumed) == OperationStatus.Done) at += consumed;
        what = $"the byte 0x{bytes[at]:X2}, which is not UTF-8";
        return at;
    }

    private static SafeFileHandle Unpack(string path, SafeFileHandle packed)
    {
        var name = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        var file = File.OpenHandle(name, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, FileOptions.DeleteOnClose);
        try
        {
            using var gzip = new GZipStream(new FileStream(packed, FileAccess.Read, bufferSize: 0), CompressionMode.Decompress);
            var buffer = new byte[1 << 20];
            long offset = 0;
            int read;
            while ((read = gzip.Read(buffer)) > 0)
            {
                RandomAccess.Write(file, buffer.AsSpan(0, read), offset);
                offset += read;
            }
            return file;
        }
        catch (InvalidDataException e)
        {
            file.Dispose();
            throw new ConfigException("DATA012", $"{path} is a damaged gzip file ({e.Message}); fetch or pack it again.");
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }
}
