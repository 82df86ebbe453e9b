using System.Buffers.Binary;
using System.Text;

namespace Megatron.Compute.Distributed;

/// <summary>Operations of the rendezvous protocol.</summary>
internal enum RendezvousOperation : byte
{
    Set = 1,
    Get = 2,
    Add = 3,
    CompareSet = 4,
    Keys = 5,
}

/// <summary>First byte of a reply.</summary>
internal enum RendezvousStatus : byte
{
    Done = 0,

    /// <summary>Get: not set within the time asked for. CompareSet: the key held something else.</summary>
    No = 1,

    /// <summary>The request was refused; the payload is the reason in UTF-8.</summary>
    Refused = 2,
}

/// <summary>
/// The bytes between <see cref="TcpRendezvousStore"/> and <see cref="TcpRendezvousServer"/>: a frame is a 32-bit little-endian length and so
/// many bytes. A request is an operation byte and fields, a reply a status byte and fields; a field is a length and bytes. A frame longer
/// than <see cref="MaxFrameLength"/> ends the connection before anything is allocated for it.
/// </summary>
internal static class RendezvousProtocol
{
    /// <summary>A key, two values and their lengths; also room for many keys in a reply to Keys.</summary>
    public const int MaxFrameLength = 4 * RendezvousLimits.MaxValueLength;

    /// <summary>Longest wait that one Get request may ask of the server; the client repeats it and checks its token in between.</summary>
    public static readonly TimeSpan MaxServerWait = TimeSpan.FromMilliseconds(200);

    public static void WriteFrame(Stream stream, byte head, params ReadOnlySpan<byte[]> fields)
    {
        var length = 1;
        foreach (var field in fields) length += 4 + field.Length;
        if (length > MaxFrameLength) throw new InvalidDataException($"A frame of {length} bytes is too long; at most {MaxFrameLength} are allowed.");
        var frame = new byte[4 + length];
        BinaryPrimitives.WriteInt32LittleEndian(frame, length);
        frame[4] = head;
        var position = 5;
        foreach (var field in fields)
        {
            BinaryPrimitives.WriteInt32LittleEndian(frame.AsSpan(position), field.Length);
            field.CopyTo(frame.AsSpan(position + 4));
            position += 4 + field.Length;
        }
        stream.Write(frame);
    }

    /// <summary>Reads one frame; null when the other side closed the connection between frames.</summary>
    /// <exception cref="InvalidDataException">The bytes are not a frame.</exception>
    /// <exception cref="IOException">The connection broke, or ended inside a frame.</exception>
    public static (byte Head, byte[][] Fields)? ReadFrame(Stream stream)
    {
        var header = new byte[4];
        var numRead = stream.ReadAtLeast(header, 4, throwOnEndOfStream: false);
        if (numRead == 0) return null;
        if (numRead < 4) throw new EndOfStreamException("The connection ended inside a frame.");
        var length = BinaryPrimitives.ReadInt32LittleEndian(header);
        if (length is < 1 or > MaxFrameLength) throw new InvalidDataException($"A frame of {length} bytes is not allowed.");
        var body = new byte[length];
        stream.ReadExactly(body);
        return (body[0], Split(body.AsSpan(1)));
    }

    public static byte[] Text(string text) => Encoding.UTF8.GetBytes(text);

    public static string Text(byte[] bytes) => Encoding.UTF8.GetString(bytes);

    public static byte[] Number(long value)
    {
        var bytes = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, value);
        return bytes;
    }

    public static long Number(byte[] bytes) => bytes.Length == 8
        ? BinaryPrimitives.ReadInt64LittleEndian(bytes)
        : throw new InvalidDataException($"A number has {bytes.Length} bytes instead of 8.");

    private static byte[][] Split(ReadOnlySpan<byte> body)
    {
        var fields = new List<byte[]>();
        while (body.Length > 0)
        {
            if (body.Length < 4) throw new InvalidDataException("A field's length is cut off.");
            var length = BinaryPrimitives.ReadInt32LittleEndian(body);
            if (length < 0 || length > body.Length - 4) throw new InvalidDataException($"A field of {length} bytes does not fit its frame.");
            fields.Add(body.Slice(4, length).ToArray());
            body = body[(4 + length)..];
        }
        return [.. fields];
    }
}
