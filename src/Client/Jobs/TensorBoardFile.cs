// TensorBoard's event file: TFRecords (length, its CRC, data, its CRC; little-endian, CRC32C masked as TensorFlow's record_writer does) whose data
// are protobuf Events, encoded by hand because only four fields are used.

using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;

namespace Megatron.Client.Jobs;

/// <summary>Writes scalars to one <c>events.out.tfevents.*</c> file.</summary>
public sealed class TensorBoardFile : IDisposable
{
    private const uint MaskDelta = 0xa282ead8;

    // (field number << 3) | wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
    private const byte EventWallTime = 1 << 3 | 1, EventStep = 2 << 3, EventFileVersion = 3 << 3 | 2, EventSummary = 5 << 3 | 2;
    private const byte SummaryValue = 1 << 3 | 2, ValueTag = 1 << 3 | 2, ValueSimple = 2 << 3 | 5;

    private readonly FileStream file;

    /// <summary>Makes the folder and the file; two programs never share one.</summary>
    /// <param name="folder">Folder that TensorBoard is pointed at.</param>
    /// <param name="time">When the file begins.</param>
    public TensorBoardFile(string folder, DateTimeOffset time)
    {
        Directory.CreateDirectory(folder);
        var name = string.Create(CultureInfo.InvariantCulture,
            $"events.out.tfevents.{time.ToUnixTimeSeconds():D10}.{Environment.MachineName}.{Environment.ProcessId}.{Guid.NewGuid():N}");
        file = new FileStream(Path.Combine(folder, name), FileMode.CreateNew, FileAccess.Write, FileShare.ReadWrite);
        var data = Begin(time, step: 0);
        AddBytes(data, EventFileVersion, "brain.Event:2"u8);
        Append(data);
    }

    /// <summary>Adds points of one step as one event.</summary>
    public void Write(DateTimeOffset time, long step, IReadOnlyList<(string Tag, double Value)> points)
    {
        var summary = new List<byte>();
        foreach (var (tag, value) in points)
        {
            var entry = new List<byte>();
            AddBytes(entry, ValueTag, Encoding.UTF8.GetBytes(tag));
            entry.Add(ValueSimple);
            AddFixed32(entry, BitConverter.SingleToUInt32Bits((float)value));
            AddBytes(summary, SummaryValue, [.. entry]);
        }
        var data = Begin(time, step);
        AddBytes(data, EventSummary, [.. summary]);
        Append(data);
    }

    /// <inheritdoc/>
    public void Dispose() => file.Dispose();

    /// <summary>CRC32C (Castagnoli) of the bytes, rotated and shifted by a constant as the record format asks for.</summary>
    internal static uint MaskedCrc(ReadOnlySpan<byte> bytes)
    {
        var crc = ~0u;
        foreach (var value in bytes) crc = BitOperations.Crc32C(crc, value);
        return BitOperations.RotateRight(~crc, 15) + MaskDelta;
    }

    private static List<byte> Begin(DateTimeOffset time, long step)
    {
        var data = new List<byte> { EventWallTime };
        var seconds = BitConverter.DoubleToUInt64Bits((time - DateTimeOffset.UnixEpoch).TotalSeconds);
        AddFixed32(data, (uint)seconds);
        AddFixed32(data, (uint)(seconds >> 32));
        data.Add(EventStep);
        AddVarint(data, (ulong)step);
        return data;
    }

    private void Append(List<byte> data)
    {
        Span<byte> head = stackalloc byte[12];
        BinaryPrimitives.WriteUInt64LittleEndian(head, (ulong)data.Count);
        BinaryPrimitives.WriteUInt32LittleEndian(head[8..], MaskedCrc(head[..8]));
        byte[] bytes = [.. data];
        Span<byte> tail = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(tail, MaskedCrc(bytes));
        file.Write(head);
        file.Write(bytes);
        file.Write(tail);
        file.Flush();
    }

    private static void AddBytes(List<byte> to, byte key, ReadOnlySpan<byte> bytes)
    {
        to.Add(key);
        AddVarint(to, (ulong)bytes.Length);
        foreach (var value in bytes) to.Add(value);
    }

    private static void AddFixed32(List<byte> to, uint value)
    {
        for (var shift = 0; shift < 32; shift += 8) to.Add((byte)(value >> shift));
    }

    private static void AddVarint(List<byte> to, ulong value)
    {
        for (; value >= 0x80; value >>= 7) to.Add((byte)(value | 0x80));
        to.Add((byte)value);
    }
}
