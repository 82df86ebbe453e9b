using System.Globalization;
using System.Text.Json;
using System.Text.Unicode;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Parses and checks the header of a safetensors file: a forward-only reader over bytes, no tensors, no document tree. Every way a header
/// can be wrong has its own code, ST001 to ST024; limits are tested before memory is taken.
/// </summary>
public sealed class SafetensorsHeader
{
    /// <summary>Longest header accepted (the reference implementation's limit).</summary>
    public const long HeaderBytesMax = 100_000_000;

    /// <summary>Most tensors accepted in one file.</summary>
    public const int EntriesMax = 2_000_000;

    /// <summary>Bytes that <see cref="ReadLength"/> wants to see: enough to recognise a Git LFS pointer.</summary>
    public const int StartBytes = 20;

    private const long MetadataBytesMax = 1 << 20;
    private const int DepthMax = 8;
    private const ulong NumberMax = (1UL << 48) - 1;

    private readonly Dictionary<string, SafetensorsEntry> tensors = new(StringComparer.Ordinal);
    private readonly Dictionary<string, string> metadata = new(StringComparer.Ordinal);
    private readonly string source;
    private readonly bool strict;
    private bool hasMetadata;

    /// <summary>Tensors by name, in the order of the header.</summary>
    public IReadOnlyDictionary<string, SafetensorsEntry> Tensors => tensors;

    /// <summary>The <c>__metadata__</c> map; empty when absent.</summary>
    public IReadOnlyDictionary<string, string> Metadata => metadata;

    private SafetensorsHeader(string source, bool strict) => (this.source, this.strict) = (source, strict);

    /// <summary>Reads the length of the header from the first bytes of a file.</summary>
    /// <param name="start">The first <see cref="StartBytes"/> bytes of the file, or all of a shorter one.</param>
    /// <param name="fileBytes">Length of the whole file.</param>
    /// <param name="source">Named in error messages.</param>
    /// <exception cref="ConfigException">ST001, ST002, ST003 or ST024.</exception>
    public static int ReadLength(ReadOnlySpan<byte> start, long fileBytes, string source)
    {
        if (start.StartsWith("version https://git-"u8))
            throw Error("ST024", source, "this is a Git LFS pointer, the weights were not downloaded; run `git lfs pull` in the folder it came from");
        if (fileBytes < 8 || start.Length < 8)
            throw Error("ST001", source, $"the file has {Text(fileBytes)} bytes, a safetensors file has at least 8; download or save it again");
        var length = BitConverter.ToUInt64(start);
        if (length > HeaderBytesMax)
            throw Error("ST002", source, $"the header is said to have {Text(length)} bytes, at most {Text(HeaderBytesMax)} are allowed; this is no safetensors file or it is damaged");
        if (8 + (long)length > fileBytes)
            throw Error("ST003", source, $"the header needs {Text(8 + length)} bytes, the file has {Text(fileBytes)}; it is cut off, download or save it again");
        return (int)length;
    }

    /// <summary>Parses the header's JSON and checks it against the length of the data that follows.</summary>
    /// <param name="json">The header without its length prefix.</param>
    /// <param name="dataBytes">Bytes of the file after the header.</param>
    /// <param name="source">Named in error messages.</param>
    /// <param name="strict">Refuse unknown fields of a tensor entry; otherwise they are ignored.</param>
    /// <exception cref="ConfigException">ST004 to ST021.</exception>
    public static SafetensorsHeader Parse(ReadOnlySpan<byte> json, long dataBytes, string source, bool strict)
    {
        // The JSON reader looks at the encoding of a string only when it is asked for, so the whole text is checked first.
        if (!Utf8.IsValid(json)) throw Error("ST004", source, "the header is not UTF-8 text; the file is damaged");
        var trimmed = json.TrimStart(" \t\r\n"u8);
        if (trimmed.IsEmpty || trimmed[0] != (byte)'{') throw Error("ST006", source, "the header does not start with '{'; the file is damaged");
        var header = new SafetensorsHeader(source, strict);
        try
        {
            header.ReadRoot(json);
        }
        catch (JsonException exception)
        {
            throw Error("ST005", source, $"the header is not valid JSON (line {Text((exception.LineNumber ?? 0) + 1)}, byte {Text(exception.BytePositionInLine ?? 0)}); the file is damaged");
        }
        catch (InvalidOperationException)
        {
            // Raised by the JSON reader when an escaped string is half of a surrogate pair.
            throw Error("ST005", source, "a text in the header holds half of a surrogate pair; the file is damaged");
        }
        header.CheckOffsets(dataBytes);
        return header;
    }

    private void ReadRoot(ReadOnlySpan<byte> json)
    {
        var reader = new Utf8JsonReader(json, new JsonReaderOptions { MaxDepth = 64 });
        Next(ref reader);
        while (Next(ref reader) == JsonTokenType.PropertyName)
        {
            var name = reader.GetString() ?? "";
            if (tensors.Count >= EntriesMax) throw Error("ST020", source, $"the header lists more than {Text(EntriesMax)} tensors");
            if (name == "__metadata__") ReadMetadata(ref reader);
            else if (!tensors.TryAdd(name, ReadEntry(ref reader, name)))
                throw Error("ST007", source, $"tensor {Quote(name)} is listed twice; the file was written by a faulty program");
        }
        // Anything but white space after the closing brace makes this throw.
        while (reader.Read()) { }
    }

    private void ReadMetadata(ref Utf8JsonReader reader)
    {
        if (hasMetadata) throw Error("ST007", source, "__metadata__ is listed twice; the file was written by a faulty program");
        hasMetadata = true;
        if (Next(ref reader) != JsonTokenType.StartObject) throw Error("ST008", source, "__metadata__ is not an object of texts");
        var size = 0L;
        while (Next(ref reader) == JsonTokenType.PropertyName)
        {
            var key = reader.GetString() ?? "";
            if (Next(ref reader) != JsonTokenType.String) throw Error("ST008", source, $"__metadata__ entry {Quote(key)} is not a text");
            var value = reader.GetString() ?? "";
            size += key.Length + value.Length;
            if (size > MetadataBytesMax) throw Error("ST008", source, $"__metadata__ is larger than {Text(MetadataBytesMax)} characters");
            if (!metadata.TryAdd(key, value)) throw Error("ST007", source, $"__metadata__ entry {Quote(key)} is listed twice");
        }
    }

    private SafetensorsEntry ReadEntry(ref Utf8JsonReader reader, string name)
    {
        if (Next(ref reader) != JsonTokenType.StartObject) throw Error("ST010", source, $"the entry of tensor {Quote(name)} is not an object");
        SafetensorsDType? dtype = null;
        long[]? shape = null, offsets = null;
        while (Next(ref reader) == JsonTokenType.PropertyName)
        {
            if (reader.ValueTextEquals("dtype"u8))
            {
                if (dtype is not null) throw Duplicate(name, "dtype");
                dtype = ReadDType(ref reader, name);
            }
            else if (reader.ValueTextEquals("shape"u8))
            {
                if (shape is not null) throw Duplicate(name, "shape");
                shape = ReadNumbers(ref reader, name, "shape");
            }
            else if (reader.ValueTextEquals("data_offsets"u8))
            {
                if (offsets is not null) throw Duplicate(name, "data_offsets");
                offsets = ReadNumbers(ref reader, name, "data_offsets");
                if (offsets.Length != 2) throw Error("ST010", source, $"data_offsets of tensor {Quote(name)} has {offsets.Length} numbers instead of 2");
            }
            else
            {
                var field = reader.GetString() ?? "";
                SkipValue(ref reader);
                if (strict) throw Error("ST010", source, $"the entry of tensor {Quote(name)} has the unknown field {Quote(field)}");
            }
        }
        if (dtype is null || shape is null || offsets is null)
        {
            var missing = dtype is null ? "dtype" : shape is null ? "shape" : "data_offsets";
            throw Error("ST010", source, $"the entry of tensor {Quote(name)} has no {missing}");
        }
        var entry = new SafetensorsEntry(name, dtype.Value, shape, offsets[0], offsets[1]);
        CheckSize(entry);
        return entry;
    }

    private SafetensorsDType ReadDType(ref Utf8JsonReader reader, string name)
    {
        if (Next(ref reader) != JsonTokenType.String) throw Error("ST009", source, $"the dtype of tensor {Quote(name)} is not a text");
        var text = reader.GetString() ?? "";
        return SafetensorsDTypes.TryParse(text, out var dtype)
            ? dtype
            : throw Error("ST009", source, $"tensor {Quote(name)} has the unknown dtype {Quote(text)}");
    }

    private long[] ReadNumbers(ref Utf8JsonReader reader, string name, string field)
    {
        if (Next(ref reader) != JsonTokenType.StartArray) throw Error("ST010", source, $"{field} of tensor {Quote(name)} is not a list");
        var numbers = new List<long>();
        while (Next(ref reader) != JsonTokenType.EndArray)
        {
            if (reader.TokenType != JsonTokenType.Number || !reader.TryGetUInt64(out var number) || number > NumberMax)
                throw Error("ST011", source, $"{field} of tensor {Quote(name)} holds a value that is not a whole number from 0 to 2^48-1");
            numbers.Add((long)number);
        }
        return [.. numbers];
    }

    private void SkipValue(ref Utf8JsonReader reader)
    {
        if (Next(ref reader) is not (JsonTokenType.StartObject or JsonTokenType.StartArray)) return;
        var depth = reader.CurrentDepth;
        do Next(ref reader);
        while (reader.TokenType is not (JsonTokenType.EndObject or JsonTokenType.EndArray) || reader.CurrentDepth > depth);
    }

    private JsonTokenType Next(ref Utf8JsonReader reader)
    {
        if (!reader.Read()) return JsonTokenType.None;
        if (reader.TokenType is (JsonTokenType.StartObject or JsonTokenType.StartArray) && reader.CurrentDepth >= DepthMax)
            throw Error("ST021", source, $"the header is nested more than {DepthMax} levels deep");
        return reader.TokenType;
    }

    private void CheckSize(SafetensorsEntry entry)
    {
        if (entry.End < entry.Begin)
            throw Error("ST012", source, $"data_offsets of tensor {Quote(entry.Name)} end at {Text(entry.End)}, before they begin at {Text(entry.Begin)}");
        UInt128 bits = (uint)entry.DType.Bits();
        foreach (var extent in entry.Shape)
        {
            // Never overflows: the product so far is below 2^64 and an extent below 2^48.
            bits *= (ulong)extent;
            if (bits > ulong.MaxValue)
                throw Error("ST014", source, $"the shape of tensor {Quote(entry.Name)} has too many elements");
        }
        if (bits % 8 != 0)
            throw Error("ST015", source, $"tensor {Quote(entry.Name)} of dtype {entry.DType} and shape {entry.ShapeText} does not end at a whole byte");
        if (bits / 8 != (ulong)entry.SizeBytes)
            throw Error("ST016", source, $"tensor {Quote(entry.Name)} of dtype {entry.DType} and shape {entry.ShapeText} needs {Text((ulong)(bits / 8))} bytes, its data_offsets span {Text(entry.SizeBytes)}");
    }

    private void CheckOffsets(long dataBytes)
    {
        var sorted = tensors.Values.ToArray();
        Array.Sort(sorted, static (a, b) => a.Begin != b.Begin ? a.Begin.CompareTo(b.Begin) : a.End.CompareTo(b.End));
        var end = 0L;
        var previous = "the start of the data";
        foreach (var entry in sorted)
        {
            if (entry.Begin != end)
                throw Error("ST013", source, $"tensor {Quote(entry.Name)} begins at {Text(entry.Begin)}, {(entry.Begin > end ? "leaving a gap after" : "inside")} {previous}, which ends at {Text(end)}");
            (end, previous) = (entry.End, $"tensor {Quote(entry.Name)}");
        }
        if (end < dataBytes) throw Error("ST017", source, $"the file has {Text(dataBytes - end)} bytes too many after the last tensor; it is damaged or carries something else");
        if (end > dataBytes) throw Error("ST017", source, $"the file has {Text(end - dataBytes)} bytes too few; it is cut off, download or save it again");
    }

    private ConfigException Duplicate(string name, string field) =>
        Error("ST007", source, $"the entry of tensor {Quote(name)} has {field} twice");

    internal static ConfigException Error(string code, string source, string what) => new(code, $"{source}: {what}.");

    private static string Quote(string name) => Printable.Quote(name);

    private static string Text(long value) => value.ToString(CultureInfo.InvariantCulture);

    private static string Text(ulong value) => value.ToString(CultureInfo.InvariantCulture);
}
