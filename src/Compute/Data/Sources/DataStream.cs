using System.IO.Compression;
using Megatron.Compute.Configuration;
using ZstdSharp;

namespace Megatron.Compute.Data.Sources;

/// <summary>Opens data files; gzip and zstd are known by their first bytes, whatever the name says.</summary>
internal static class DataStream
{
    /// <summary>The file's bytes, unpacked, to be read once from the beginning.</summary>
    /// <param name="path">The file.</param>
    /// <param name="isPacked">True when they are not the file's own bytes.</param>
    /// <exception cref="ConfigException">DATA009: it cannot be opened.</exception>
    public static Stream Open(string path, out bool isPacked)
    {
        var file = OpenFile(path);
        Span<byte> magic = stackalloc byte[4];
        var read = file.ReadAtLeast(magic, magic.Length, throwOnEndOfStream: false);
        file.Position = 0;
        isPacked = true;
        if (read >= 2 && magic is [0x1F, 0x8B, ..]) return new GZipStream(file, CompressionMode.Decompress);
        if (read == 4 && magic is [0x28, 0xB5, 0x2F, 0xFD]) return new DecompressionStream(file, leaveOpen: false);
        isPacked = false;
        return file;
    }

    /// <summary>The file itself.</summary>
    /// <exception cref="ConfigException">DATA009: it cannot be opened.</exception>
    public static FileStream OpenFile(string path)
    {
        try
        {
            return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0, FileOptions.SequentialScan);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DATA009", $"{path} cannot be read: {e.Message}");
        }
    }
}
