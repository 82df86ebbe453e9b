using System.Buffers.Binary;
using System.Text;
using Megatron.Client.Jobs;
using Megatron.Testing;

namespace Megatron.Client.Tests.Jobs;

/// <summary>The event file, read back by an independent reader: a bitwise CRC32C and a generic protobuf walk.</summary>
public sealed class TensorBoardFileTests
{
    [Fact]
    public void Write_Points_AreReadBackWithTagsStepsAndChecksums()
    {
        using var folder = new TemporaryFolder();
        var time = new DateTimeOffset(2025, 5, 24, 10, 11, 12, TimeSpan.Zero);
        using (var file = new TensorBoardFile(folder.Combine("runs"), time))
        {
            file.Write(time, 1, [("lm loss", 2.5), ("grad-norm", double.NaN)]);
            file.Write(time, 300, [("lm loss", -0.125)]);
        }
        var records = Records(File.ReadAllBytes(Directory.GetFiles(folder.Combine("runs")).Single()));
        Assert.Equal(3, records.Count);
        Assert.Equal("brain.Event:2", Encoding.UTF8.GetString(Fields(records[0]).Single(field => field.Number == 3).Bytes));
        Assert.All(records, record => Assert.Equal(1748081472.0, BitConverter.ToDouble(Fields(record).Single(field => field.Number == 1).Bytes)));
        Assert.Equal([("lm loss", 2.5f), ("grad-norm", float.NaN)], Points(records[1]));
        Assert.Equal([("lm loss", -0.125f)], Points(records[2]));
        Assert.Equal(300UL, Fields(records[2]).Single(field => field.Number == 2).Varint);
    }

    private static IEnumerable<(string, float)> Points(byte[] record) => Fields(Fields(record).Single(field => field.Number == 5).Bytes)
        .Select(value => Fields(value.Bytes)).Select(value => (Encoding.UTF8.GetString(value[0].Bytes), BitConverter.ToSingle(value[1].Bytes)));

    private static List<byte[]> Records(byte[] file)
    {
        var records = new List<byte[]>();
        for (var at = 0; at < file.Length;)
        {
            var length = (int)BinaryPrimitives.ReadUInt64LittleEndian(file.AsSpan(at));
            Assert.Equal(Masked(file.AsSpan(at, 8)), BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at + 8)));
            var data = file.AsSpan(at + 12, length);
            Assert.Equal(Masked(data), BinaryPrimitives.ReadUInt32LittleEndian(file.AsSpan(at + 12 + length)));
            records.Add(data.ToArray());
            at += 16 + length;
        }
        return records;
    }

    private static List<(int Number, ulong Varint, byte[] Bytes)> Fields(byte[] message)
    {
        var fields = new List<(int, ulong, byte[])>();
        for (var at = 0; at < message.Length;)
        {
            var key = Varint(message, ref at);
            var (value, size) = (key & 7) switch
            {
                0 => (Varint(message, ref at), 0),
                1 => (0UL, 8),
                5 => (0UL, 4),
                _ => (0UL, (int)Varint(message, ref at)),
            };
            fields.Add(((int)(key >> 3), value, message[at..(at + size)]));
            at += size;
        }
        return fields;
    }

    private static ulong Varint(byte[] message, ref int at)
    {
        var value = 0UL;
        for (var shift = 0; ; shift += 7)
        {
            var part = message[at++];
            value |= (ulong)(part & 0x7f) << shift;
            if (part < 0x80) return value;
        }
    }

    private static uint Masked(ReadOnlySpan<byte> bytes)
    {
        var crc = 0xFFFFFFFFu;
        foreach (var item in bytes)
        {
            crc ^= item;
            for (var bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
        }
        crc = ~crc;
        return (crc >> 15 | crc << 17) + 0xa282ead8u;
    }
}
