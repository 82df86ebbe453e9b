namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>Random edits that stay close to the original, so that they get past the first checks of a reader.</summary>
internal static class Mutation
{
    private static readonly byte[][] tokens =
    [
        "\""u8.ToArray(), "{"u8.ToArray(), "}"u8.ToArray(), "["u8.ToArray(), "]"u8.ToArray(), ","u8.ToArray(), ":"u8.ToArray(), "null"u8.ToArray(),
        "-1"u8.ToArray(), "1e9"u8.ToArray(), "0"u8.ToArray(), "18446744073709551615"u8.ToArray(), "9223372036854775807"u8.ToArray(), "\\ud800"u8.ToArray(),
        "true"u8.ToArray(), "\"\""u8.ToArray(), "{}"u8.ToArray(), "[]"u8.ToArray(), "\\u0000"u8.ToArray(), [0xff], [0xc3, 0x28], [0], "../"u8.ToArray(), "[null]"u8.ToArray(),
    ];

    /// <summary>One to four edits: flip a bit, overwrite, insert or delete a piece, copy a piece elsewhere, put a token in.</summary>
    public static byte[] Mutate(byte[] input, Random random)
    {
        var bytes = new List<byte>(input);
        for (var edits = random.Next(1, 5); edits > 0; edits--)
        {
            var position = random.Next(bytes.Count + 1);
            var length = Math.Min(random.Next(1, 12), bytes.Count - position);
            switch (random.Next(6))
            {
                case 0 when position < bytes.Count: bytes[position] ^= (byte)(1 << random.Next(8)); break;
                case 1 when position < bytes.Count: bytes[position] = (byte)random.Next(32, 127); break;
                case 2: bytes.RemoveRange(position, length); break;
                case 3: bytes.InsertRange(random.Next(bytes.Count + 1), bytes.GetRange(position, length)); break;
                case 4:
                    bytes.RemoveRange(position, length);
                    bytes.InsertRange(position, tokens[random.Next(tokens.Length)]);
                    break;
                default: bytes.InsertRange(position, tokens[random.Next(tokens.Length)]); break;
            }
        }
        return [.. bytes];
    }
}
