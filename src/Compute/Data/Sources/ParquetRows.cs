using System.Buffers;
using System.Collections;
using System.Globalization;
using System.Runtime.ExceptionServices;
using System.Text.Json;
using Megatron.Compute.Configuration;
using Parquet;
using Parquet.Serialization;

namespace Megatron.Compute.Data.Sources;

/// <summary>Rows of a parquet file, one row group in memory at a time; nested lists and structures become JSON lists and objects.</summary>
internal sealed class ParquetRows : IRowReader
{
    private readonly string _path;
    private readonly SynchronousStream _file;
    private int _numGroups;
    private Queue<object> _rows = [];
    private int _group;
    private int _count;

    /// <exception cref="ConfigException">DATA009 (cannot be opened), DATA012 (not parquet).</exception>
    public ParquetRows(string path)
    {
        _path = path;
        _file = new SynchronousStream(DataStream.OpenFile(path));
        try
        {
            Finish(CountGroupsAsync());
        }
        catch
        {
            _file.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    /// <exception cref="ConfigException">DATA012: the rest is damaged.</exception>
    public bool TryRead(out SourceRow row)
    {
        while (_rows.Count == 0 && _group < _numGroups) Finish(ReadGroupAsync(_group++));
        row = default;
        if (!_rows.TryDequeue(out var fields)) return false;
        row = new SourceRow(_path, _count, _count + 1, Guard(() => ToJson(fields)), Problem: null);
        _count++;
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private async Task CountGroupsAsync()
    {
        _file.Position = 0;
        await using var reader = await ParquetReader.CreateAsync(_file, leaveStreamOpen: true);
        _numGroups = reader.RowGroupCount;
    }

    private async Task ReadGroupAsync(int group)
    {
        _file.Position = 0;
        var table = await ParquetSerializer.DeserializeUntypedAsync(_file, options: null, group);
        _rows = new Queue<object>(table.Data);
    }

    // The stream answers at once, so the reader never has anything to wait for and has finished when the call returns.
    private void Finish(Task reading) => Guard(() =>
    {
        if (!reading.IsCompleted) throw new InvalidOperationException("the parquet reader did not finish although its input answers at once");
        if (reading.Exception is { } failure) ExceptionDispatchInfo.Throw(failure.InnerExceptions[0]);
        return 0;
    });

    private T Guard<T>(Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is not (ConfigException or OutOfMemoryException))
        {
            // A damaged file shows as any exception of the parquet package, index and null errors included.
            throw new ConfigException("DATA012", $"{_path} is not readable as parquet ({e.Message}); write it again or convert it to jsonl.");
        }
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
