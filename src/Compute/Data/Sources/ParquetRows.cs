using System.Buffers;
using System.Collections;
using System.Globalization;
using System.Runtime.ExceptionServices;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Parquet.Serialization;

namespace Megatron.Compute.Data.Sources;

/// <summary>Rows of a parquet file; nested lists and structures become JSON lists and objects.</summary>
internal static class ParquetRows
{
    /// <summary>Reads the whole file.</summary>
    /// <exception cref="ConfigException">DATA008 (no rows), DATA012 (not parquet).</exception>
    public static MemoryRows Read(string path)
    {
        try
        {
            using var stream = new MemoryStream(File.ReadAllBytes(path));
            var rows = new List<(int Line, ReadOnlyMemory<byte> Json)>();
            var reading = ReadAsync(stream, rows);
            // The stream is memory, so the reader never has anything to wait for and has finished when the call returns.
            if (!reading.IsCompleted) throw new InvalidOperationException("the parquet reader did not finish although its input is memory");
            if (reading.Exception is { } failure) ExceptionDispatchInfo.Throw(failure.InnerExceptions[0]);
            return rows.Count > 0 ? new MemoryRows(path, rows) : throw new ConfigException("DATA008", $"{path} holds no rows; check the path.");
        }
        catch (Exception e) when (e is not (ConfigException or OutOfMemoryException))
        {
            // A damaged file shows as any exception of the parquet package, index and null errors included.
            throw new ConfigException("DATA012", $"{path} is not readable as parquet ({e.Message}); write it again or convert it to jsonl.");
        }
    }

    private static async Task ReadAsync(Stream stream, List<(int Line, ReadOnlyMemory<byte> Json)> rows)
    {
        var table = await ParquetSerializer.DeserializeUntypedAsync(stream);
        foreach (var row in table.Data) rows.Add((rows.Count + 1, ToJson(row)));
    }

    private static ReadOnlyMemory<byte> ToJson(object row)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using var writer = new Utf8JsonWriter(buffer);
        Write(writer, row);
        writer.Flush();
        return buffer.WrittenMemory;
    }

    private static void Write(Utf8JsonWriter writer, object? value)
    {
        switch (value)
        {
            case null: writer.WriteNullValue(); break;
            case string text: writer.WriteStringValue(text); break;
            case bool flag: writer.WriteBooleanValue(flag); break;
            case byte[] bytes: writer.WriteBase64StringValue(bytes); break;
            case double or float or decimal or long or int or short or sbyte or ulong or uint or ushort or byte:
                writer.WriteRawValue(JsonSerializer.SerializeToUtf8Bytes(value, value.GetType(), JsonText.NamedFloats));
                break;
            case IDictionary fields:
                writer.WriteStartObject();
                foreach (DictionaryEntry field in fields)
                {
                    writer.WritePropertyName(Convert.ToString(field.Key, CultureInfo.InvariantCulture) ?? "");
                    Write(writer, field.Value);
                }
                writer.WriteEndObject();
                break;
            case IEnumerable items:
                writer.WriteStartArray();
                foreach (var item in items) Write(writer, item);
                writer.WriteEndArray();
                break;
            default: writer.WriteStringValue(Convert.ToString(value, CultureInfo.InvariantCulture)); break;
        }
    }
}
