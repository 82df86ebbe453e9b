using System.Buffers.Binary;
using System.IO.Compression;
using System.IO.Hashing;
using Megatron.Client.Quickstart;
using Megatron.Testing;

namespace Megatron.Client.Tests.Quickstart;

public sealed class LossPlotTests
{
    [Fact]
    public void Write_TwoCurves_IsAPictureWithBothColours()
    {
        using var folder = new TemporaryFolder();
        var path = folder.Combine("loss.png");
        LossPlot.Write(path, "title", [new LossCurve("one", [(1, 8), (10, 4), (20, 2.5)]), new LossCurve("two", [(1, 3), (20, 0.1)])]);
        var (width, height, rgb) = ReadPng(path);
        Assert.Equal((900, 500), (width, height));
        Assert.Equal(900 * 500 * 3, rgb.Length);
        var colours = rgb.Chunk(3).Select(pixel => (pixel[0], pixel[1], pixel[2])).ToHashSet();
        Assert.Contains(((byte)31, (byte)119, (byte)180), colours);
        Assert.Contains(((byte)214, (byte)39, (byte)40), colours);
    }

    [Fact]
    public void Write_NoPoints_IsAPictureAllTheSame()
    {
        using var folder = new TemporaryFolder();
        LossPlot.Write(folder.Combine("empty.png"), "", [new LossCurve("none", [])]);
        Assert.Equal(900, ReadPng(folder.Combine("empty.png")).Width);
    }

    [Fact]
    public void Read_LoggingFile_TakesLossesAndPassesOverEvaluations()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.Combine("logging.jsonl"),
            """
            {"lm loss":8.5,"global_step/max_steps":"1/20"}
            {"eval_lm loss":8.1,"global_step/max_steps":"10/20"}
            {"lm loss":null,"global_step/max_steps":"10/20"}
            {"lm loss":7.25,"global_step/max_steps":"20/20"}
            """);
        Assert.Equal([(1, 8.5), (20, 7.25)], LossCurve.Read("run", folder.Root).Points);
    }

    /// <summary>A reader of its own: chunks with checked CRC, unfiltered rows.</summary>
    private static (int Width, int Height, byte[] Rgb) ReadPng(string path)
    {
        var bytes = File.ReadAllBytes(path);
        Assert.Equal([0x89, (byte)'P', (byte)'N', (byte)'G', 13, 10, 26, 10], bytes[..8]);
        var (width, height, data) = (0, 0, Array.Empty<byte>());
        for (var at = 8; at < bytes.Length;)
        {
            var length = BinaryPrimitives.ReadInt32BigEndian(bytes.AsSpan(at));
            var body = bytes.AsSpan(at + 4, length + 4);
            Assert.Equal(Crc32.HashToUInt32(body), BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(at + 8 + length)));
            if (body[..4].SequenceEqual("IHDR"u8))
                (width, height) = (BinaryPrimitives.ReadInt32BigEndian(body[4..]), BinaryPrimitives.ReadInt32BigEndian(body[8..]));
            if (body[..4].SequenceEqual("IDAT"u8)) data = body[4..].ToArray();
            at += length + 12;
        }
        using var inflated = new MemoryStream();
        using (var stream = new ZLibStream(new MemoryStream(data), CompressionMode.Decompress)) stream.CopyTo(inflated);
        var rows = inflated.ToArray().Chunk(1 + 3 * width).ToList();
        Assert.All(rows, row => Assert.Equal(0, row[0]));
        return (width, height, [.. rows.SelectMany(row => row[1..])]);
    }
}
