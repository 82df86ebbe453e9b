using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace Megatron.Compute.Distributed;

/// <summary>The three connections between two ranks of a group. Each has its own flow control, so none can hold up another.</summary>
internal enum TcpChannel : byte
{
    /// <summary>Notices, aborts, farewells; read all the time, so that a lost peer is seen whatever the rank is doing.</summary>
    Control = 1,

    /// <summary>Payload of collectives.</summary>
    Collective = 2,

    /// <summary>Payload of sends and receives.</summary>
    Transfer = 3,
}

/// <summary>Which connection of which group comes from which global rank.</summary>
internal readonly record struct TcpChannelKey(string GroupHash, int FromRank, TcpChannel Channel);

/// <summary>The listener's answer to a hello: one byte.</summary>
internal enum TcpWelcome : byte
{
    Accepted = 1,

    /// <summary>The caller belongs to another attempt of the job, or to another job.</summary>
    StaleAttempt = 2,

    /// <summary>The caller meant another rank or another process: its address was out of date.</summary>
    WrongRank = 3,

    /// <summary>This connection exists already.</summary>
    Duplicate = 4,
}

/// <summary>
/// The first bytes of every connection, of fixed length so that nothing in them sizes a read. A rank of an older attempt carries another
/// attempt hash; one that reaches a port that was given to a new process carries another token.
/// </summary>
/// <param name="AttemptHash">[32] SHA-256 of the attempt's name.</param>
/// <param name="Token">[16] random bytes that the listening rank published with its address.</param>
/// <param name="ToRank">Global rank that is called.</param>
internal sealed record TcpHello(byte[] AttemptHash, byte[] Token, int ToRank, TcpChannelKey Key)
{
    public const int TokenLength = 16;

    public const int Length = 8 + 32 + TokenLength + 32 + 4 + 4 + 1;

    private static ReadOnlySpan<byte> Magic => "MGTRTCP1"u8;

    public static byte[] HashOf(string text) => SHA256.HashData(Encoding.UTF8.GetBytes(text));

    public byte[] ToBytes()
    {
        var bytes = new byte[Length];
        Magic.CopyTo(bytes);
        AttemptHash.CopyTo(bytes.AsSpan(8));
        Token.CopyTo(bytes.AsSpan(40));
        Convert.FromHexString(Key.GroupHash).CopyTo(bytes.AsSpan(56));
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(88), Key.FromRank);
        BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(92), ToRank);
        bytes[96] = (byte)Key.Channel;
        return bytes;
    }

    /// <summary>Null when the bytes are something else.</summary>
    public static TcpHello? Parse(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length != Length || !bytes.StartsWith(Magic)) return null;
        var channel = (TcpChannel)bytes[96];
        var fromRank = BinaryPrimitives.ReadInt32LittleEndian(bytes[88..]);
        if (!Enum.IsDefined(channel) || fromRank < 0) return null;
        return new TcpHello(
            bytes.Slice(8, 32).ToArray(), bytes.Slice(40, TokenLength).ToArray(), BinaryPrimitives.ReadInt32LittleEndian(bytes[92..]),
            new TcpChannelKey(Convert.ToHexString(bytes.Slice(56, 32)), fromRank, channel));
    }
}
