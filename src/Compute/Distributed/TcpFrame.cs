using System.Buffers.Binary;
using System.Text;

namespace Megatron.Compute.Distributed;

/// <summary>What a rank tells a peer on their control connection.</summary>
internal enum TcpFrameKind : byte
{
    /// <summary>It entered collective <see cref="TcpFrame.Number"/>.</summary>
    Enter = 1,

    /// <summary>It started its <see cref="TcpFrame.Number"/>-th send to this peer.</summary>
    Send = 2,

    /// <summary>It started its <see cref="TcpFrame.Number"/>-th receive from this peer.</summary>
    Receive = 3,

    /// <summary>It has finished all its operations and will enter no more.</summary>
    Leave = 4,

    /// <summary>The group is unusable; the text says why, the number is the global rank to blame or -1.</summary>
    Abort = 5,
}

/// <summary>
/// One message of a control connection: 32-bit little-endian length, kind, number, count of splits, splits, UTF-8 text. Tensor bytes never
/// travel here, and no length that arrives here ever sizes a tensor transfer: both ends know the size from their own call.
/// </summary>
/// <param name="Text">Operation, dtype and shape of the call, or the reason of an abort.</param>
/// <param name="Splits">Rows for each rank of an all-to-all; otherwise empty.</param>
internal sealed record TcpFrame(TcpFrameKind Kind, long Number, string Text, long[] Splits)
{
    /// <summary>Longer texts are cut when they are sent and refused when they arrive.</summary>
    public const int MaxTextLength = 4096;

    private const int HeadLength = 1 + 8 + 4;

    /// <summary>Longest body in a group of <paramref name="groupSize"/> ranks.</summary>
    public static int MaxLength(int groupSize) => HeadLength + 8 * groupSize + MaxTextLength;

    /// <summary>The bytes, with the length in front.</summary>
    public byte[] ToBytes()
    {
        var text = Encoding.UTF8.GetBytes(Text);
        if (text.Length > MaxTextLength) text = text[..MaxTextLength];
        var bytes = new byte[4 + HeadLength + 8 * Splits.Length + text.Length];
        BinaryPrimitives.WriteInt32LittleEndian(bytes, bytes.Length - 4);
        bytes[4] = (byte)Kind;
        BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(5), Number);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(13), Splits.Length);
        for (var i = 0; i < Splits.Length; i++) BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(17 + 8 * i), Splits[i]);
        text.CopyTo(bytes.AsSpan(17 + 8 * Splits.Length));
        return bytes;
    }

    /// <summary>Takes the first frame from <paramref name="bytes"/>; null when it has not arrived as a whole.</summary>
    /// <param name="taken">Bytes of the frame, 0 for none.</param>
    /// <exception cref="InvalidDataException">The bytes are not a frame that a group of this size can send.</exception>
    public static TcpFrame? Parse(ReadOnlySpan<byte> bytes, int groupSize, out int taken)
    {
        taken = 0;
        if (bytes.Length < 4) return null;
        var length = BinaryPrimitives.ReadInt32LittleEndian(bytes);
        if (length < HeadLength || length > MaxLength(groupSize)) throw new InvalidDataException($"a frame of {length} bytes");
        if (bytes.Length < 4 + length) return null;
        var body = bytes.Slice(4, length);
        var kind = (TcpFrameKind)body[0];
        if (!Enum.IsDefined(kind)) throw new InvalidDataException($"a frame of the unknown kind {body[0]}");
        var numSplits = BinaryPrimitives.ReadInt32LittleEndian(body[9..]);
        if (numSplits != 0 && numSplits != groupSize || HeadLength + 8 * numSplits > length)
            throw new InvalidDataException($"{numSplits} splits in a group of {groupSize}");
        var splits = new long[numSplits];
        for (var i = 0; i < numSplits; i++) splits[i] = BinaryPrimitives.ReadInt64LittleEndian(body[(HeadLength + 8 * i)..]);
        taken = 4 + length;
        return new TcpFrame(kind, BinaryPrimitives.ReadInt64LittleEndian(body[1..]), Encoding.UTF8.GetString(body[(HeadLength + 8 * numSplits)..]), splits);
    }
}
