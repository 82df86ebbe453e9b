using System.Buffers.Binary;
using System.IO.Compression;
using System.IO.Hashing;

namespace Megatron.Client.Quickstart;

/// <summary>Writes a picture as PNG (RGB, 8 bits a channel): signature, header, one compressed data chunk, end.</summary>
public static class PngFile
{
    private static ReadOnlySpan<byte> Signature => [0x89, (byte)'P', (byte)'N', (byte)'G', 0x0D, 0x0A, 0x1A, 0x0A];

    /// <summary>Writes the file.</summary>
    /// <param name="rgb">Rows from the top, three bytes per pixel.</param>
    public static void Write(string path, int width, int height, ReadOnlySpan<byte> rgb)
    {
        using var file = new FileStream(path, FileMode.Create, FileAccess.Write);
        file.Write(Signature);
        Span<byte> header = stackalloc byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, width);
        BinaryPrimitives.WriteInt32BigEndian(header[4..], height);
        (header[8], header[9]) = (8, 2); // bits per channel, RGB; the other fields have one legal value, 0
        WriteChunk(file, "IHDR"u8, header);

        using var data = new MemoryStream();
        using (var compressed = new ZLibStream(data, CompressionLevel.Optimal, leaveOpen: true))
        {
            for (var row = 0; row < height; row++)
            {
                compressed.WriteByte(0); // the row is not filtered
                compressed.Write(rgb.Slice(row * width * 3, width * 3));
            }
        }
        WriteChunk(file, "IDAT"u8, data.GetBuffer().AsSpan(0, (int)data.Length));
        WriteChunk(file, "IEND"u8, []);
    }

    private static void WriteChunk(FileStream file, ReadOnlySpan<byte> type, ReadOnlySpan<byte> data)
    {
        Span<byte> number = stackalloc byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, data.Length);
        file.Write(number);
        file.Write(type);
        file.Write(data);
        var crc = new Crc32();
        crc.Append(type);
        crc.Append(data);
        BinaryPrimitives.WriteUInt32BigEndian(number, crc.GetCurrentHashAsUInt32());
        file.Write(number);
    }
}
