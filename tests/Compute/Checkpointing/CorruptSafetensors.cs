using System.Text;

namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>A broken file and the code it must be refused with.</summary>
public sealed record CorruptFile(string Title, byte[] Bytes, string Code);

/// <summary>Builds safetensors files that break one rule each (rules 1 to 24 of the format decisions).</summary>
public static class CorruptSafetensors
{
    /// <summary>A file with this header text and this many data bytes.</summary>
    public static byte[] Make(string header, long dataBytes) => Make(Encoding.UTF8.GetBytes(header), dataBytes);

    public static byte[] Make(byte[] header, long dataBytes) => [.. BitConverter.GetBytes((ulong)header.Length), .. header, .. new byte[dataBytes]];

    /// <summary>A sound file: two tensors, metadata, 24 data bytes.</summary>
    public const string SoundHeader =
        """{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}""";

    public static byte[] Sound() => Make(SoundHeader, 24);

    public static IEnumerable<CorruptFile> All() =>
        [.. Lengths(), .. Texts(), .. Duplicates(), .. MetadataMaps(), .. Entries(), .. Numbers(), .. Offsets(), .. Sizes(), .. Truncations()];

    private static IEnumerable<CorruptFile> Lengths()
    {
        for (var size = 0; size < 8; size++) yield return new($"{size} bytes", new byte[size], "ST001");
        foreach (var length in new[] { 100_000_001UL, 1UL << 32, 1UL << 62, 1UL << 63, ulong.MaxValue, ulong.MaxValue - 7 })
            yield return new($"header of {length}", [.. BitConverter.GetBytes(length), .. new byte[64]], "ST002");
        foreach (var length in new[] { 57UL, 65UL, 1000UL, 100_000_000UL })
            yield return new($"header of {length} in a file of 64", [.. BitConverter.GetBytes(length), .. new byte[56]], "ST003");
        yield return new("LFS pointer", Encoding.ASCII.GetBytes("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "ST024");
        yield return new("LFS pointer, only its start", Encoding.ASCII.GetBytes("version https://git-lfs"), "ST024");
    }

    private static IEnumerable<CorruptFile> Texts()
    {
        foreach (var bad in new byte[][] { [0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf5, 0x80, 0x80, 0x80], [0xe2, 0x82], [0x80] })
        {
            yield return new($"name with bytes {Convert.ToHexString(bad)}", Make([.. "{\""u8, .. bad, .. "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"u8], 0), "ST004");
            yield return new($"bytes {Convert.ToHexString(bad)} after the header", Make([.. "{}"u8, .. bad], 0), "ST004");
        }
        foreach (var text in new[] { "{", "{}x", "{}{}", "{\"a\"}", "{\"a\":}", "{'a':1}", "{} ]", "{//c\n}", "{\"a\" 1}", "{\"a\":{\"dtype\":\"U8\"", "{}\0" })
            yield return new($"JSON {text}", Make(text, 0), "ST005");
        yield return new("lone surrogate in a name", Make("""{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}""", 0), "ST005");
        yield return new("lone surrogate in a dtype", Make("""{"a":{"dtype":"\udc00","shape":[0],"data_offsets":[0,0]}}""", 0), "ST005");
        foreach (var text in new[] { "", " ", "\t\r\n", "[]", "null", "1", "\"{}\"", "\u00a0{}", "\ufeff{}", "true", "\0{}" })
            yield return new($"header starting {text}", Make(text, 0), "ST006");
        foreach (var depth in new[] { 8, 9, 60, 5000 })
            yield return new($"nesting {depth}", Make($$$"""{"a":{"x":{{{new string('[', depth)}}}{{{new string(']', depth)}}},"dtype":"U8","shape":[0],"data_offsets":[0,0]}}""", 0), "ST021");
    }

    private static IEnumerable<CorruptFile> Duplicates()
    {
        const string entry = """{"dtype":"U8","shape":[1],"data_offsets":[0,1]}""";
        yield return new("same name twice", Make($$$"""{"a":{{{entry}}},"a":{{{entry}}}}""", 1), "ST007");
        yield return new("same name, one escaped", Make($$$"""{"a":{{{entry}}},"\u0061":{{{entry}}}}""", 1), "ST007");
        yield return new("metadata twice", Make("""{"__metadata__":{},"__metadata__":{}}""", 0), "ST007");
        yield return new("metadata key twice", Make("""{"__metadata__":{"k":"1","k":"2"}}""", 0), "ST007");
        yield return new("dtype twice", Make("""{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}""", 1), "ST007");
        yield return new("shape twice", Make("""{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}""", 1), "ST007");
        yield return new("offsets twice", Make("""{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}}""", 1), "ST007");
    }

    private static IEnumerable<CorruptFile> MetadataMaps()
    {
        foreach (var value in new[] { "1", "null", "[]", "\"x\"", "true", """{"k":1}""", """{"k":null}""", """{"k":{}}""", """{"k":["v"]}""", """{"k":true}""" })
            yield return new($"metadata {value}", Make($$$"""{"__metadata__":{{{value}}}}""", 0), "ST008");
        yield return new("metadata of 2 MiB", Make($$$"""{"__metadata__":{"k":"{{{new string('x', 2 << 20)}}}"}}""", 0), "ST008");
    }

    private static IEnumerable<CorruptFile> Entries()
    {
        foreach (var dtype in new[] { "f32", "FLOAT", "", "F128", "BF16 ", "F8", "INT4", "0", "torch.float32" })
            yield return new($"dtype {dtype}", Make($$$"""{"a":{"dtype":"{{{dtype}}}","shape":[1],"data_offsets":[0,1]}}""", 1), "ST009");
        foreach (var dtype in new[] { "1", "null", "[]", "{}" })
            yield return new($"dtype value {dtype}", Make($$$"""{"a":{"dtype":{{{dtype}}},"shape":[1],"data_offsets":[0,1]}}""", 1), "ST009");
        foreach (var entry in new[]
        {
            "1", "null", "[]", "\"x\"", "{}", """{"dtype":"U8"}""", """{"dtype":"U8","shape":[1]}""", """{"dtype":"U8","data_offsets":[0,1]}""",
            """{"shape":[1],"data_offsets":[0,1]}""", """{"dtype":"U8","shape":1,"data_offsets":[0,1]}""", """{"dtype":"U8","shape":[1],"data_offsets":[0]}""",
            """{"dtype":"U8","shape":[1],"data_offsets":[]}""", """{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}""", """{"dtype":"U8","shape":[1],"data_offsets":{}}""",
            """{"dtype":"U8","shape":null,"data_offsets":[0,1]}""", """{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":1}""",
            """{"dtype":"U8","shape":[1],"data_offsets":[0,1],"Dtype":{"a":[{}]}}""",
        })
            yield return new($"entry {entry}", Make($$$"""{"a":{{{entry}}}}""", 1), "ST010");
    }

    private static IEnumerable<CorruptFile> Numbers()
    {
        foreach (var number in new[] { "-1", "1.0", "1.5", "1e0", "1E2", "281474976710656", "9223372036854775808", "18446744073709551616", "1e400", "\"1\"", "null", "true", "[1]", "{}" })
        {
            yield return new($"extent {number}", Make($$$"""{"a":{"dtype":"U8","shape":[{{{number}}}],"data_offsets":[0,1]}}""", 1), "ST011");
            yield return new($"end {number}", Make($$$"""{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,{{{number}}}]}}""", 1), "ST011");
        }
    }

    private static IEnumerable<CorruptFile> Offsets()
    {
        foreach (var (begin, end) in new[] { (1, 0), (16, 8), (281474976710655, 0), (9, 8) })
            yield return new($"offsets {begin} {end}", Make($$$"""{"a":{"dtype":"U8","shape":[1],"data_offsets":[{{{begin}}},{{{end}}}]}}""", 8), "ST012");
        foreach (var (first, second, size) in new[] { ((1, 5), (5, 9), 9), ((0, 4), (5, 9), 9), ((0, 4), (3, 7), 7), ((0, 4), (0, 4), 4), ((0, 4), (0, 4), 8), ((4, 8), (8, 12), 12), ((0, 4), (2, 6), 6), ((4, 8), (5, 9), 9) })
            yield return new($"ranges {first} {second}", Make(
                $$$"""{"a":{"dtype":"F32","shape":[1],"data_offsets":[{{{first.Item1}}},{{{first.Item2}}}]},"b":{"dtype":"F32","shape":[],"data_offsets":[{{{second.Item1}}},{{{second.Item2}}}]}}""", size), "ST013");
        yield return new("empty tensor after a gap", Make("""{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}""", 4), "ST013");
        var many = string.Join(",", Enumerable.Range(0, 1000).Select(index => $$$"""
            "t{{{index}}}":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}
            """));
        yield return new("a thousand tensors on one range", Make("{" + many + "}", 64), "ST013");
        foreach (var extra in new[] { 1, 7, 8, 4096 })
        {
            yield return new($"{extra} bytes too many", [.. Sound(), .. new byte[extra]], "ST017");
            yield return new($"{extra} bytes after an empty file", Make("{}", extra), "ST017");
        }
        foreach (var missing in new[] { 1, 2, 8, 23, 24 }) yield return new($"{missing} bytes too few", Make(SoundHeader, 24 - missing), "ST017");
    }

    private static IEnumerable<CorruptFile> Sizes()
    {
        foreach (var shape in new[] { "[281474976710655,281474976710655]", "[4294967296,4294967296]", "[281474976710655,281474976710655,281474976710655,0]", "[2147483648,2147483648,32]" })
            yield return new($"shape {shape}", Make($$$"""{"a":{"dtype":"F32","shape":{{{shape}}},"data_offsets":[0,4]}}""", 4), "ST014");
        foreach (var (dtype, shape) in new[] { ("F4", "[1]"), ("F4", "[3,3]"), ("F6_E2M3", "[1]"), ("F6_E3M2", "[3]"), ("F6_E2M3", "[2]") })
            yield return new($"{dtype} {shape}", Make($$$"""{"a":{"dtype":"{{{dtype}}}","shape":{{{shape}}},"data_offsets":[0,1]}}""", 1), "ST015");
        foreach (var (dtype, shape, size) in new[] { ("F32", "[2]", 4), ("F32", "[]", 8), ("BF16", "[3]", 12), ("F64", "[1]", 4), ("BOOL", "[9]", 8), ("F4", "[4]", 4), ("F32", "[0]", 4), ("C64", "[1]", 16), ("U8", "[2,2,2]", 7), ("F32", "[1]", 0) })
            yield return new($"{dtype} {shape} in {size} bytes", Make($$$"""{"a":{"dtype":"{{{dtype}}}","shape":{{{shape}}},"data_offsets":[0,{{{size}}}]}}""", size), "ST016");
    }

    private static IEnumerable<CorruptFile> Truncations()
    {
        var sound = Sound();
        var headerEnd = 8 + SoundHeader.Length;
        for (var length = 1; length < sound.Length; length += 4)
            yield return new($"cut after {length} bytes", sound[..length], length < 8 ? "ST001" : length < headerEnd ? "ST003" : "ST017");
    }
}
