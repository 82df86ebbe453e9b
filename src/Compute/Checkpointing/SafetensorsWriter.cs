using System.Buffers.Binary;
using System.IO.Hashing;
using System.Runtime.InteropServices;
using System.Text.Encodings.Web;
using System.Text.Json;
using Megatron.Compute.Native;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>A tensor to be written: name, element type and shape.</summary>
public sealed record SafetensorsSpec(string Name, SafetensorsDType DType, long[] Shape)
{
    /// <summary>Elements of the tensor.</summary>
    public long NumElements => Shape.Aggregate(1L, (product, extent) => checked(product * extent));

    /// <summary>Bytes of the tensor.</summary>
    public long SizeBytes => Shape.Aggregate((long)DType.SizeBytes(), (product, extent) => checked(product * extent));
}

/// <summary>
/// Writes a safetensors file front to back: the header first, then each tensor in the order announced. The bytes depend on nothing but the
/// arguments; the hash is taken while writing; memory is bounded by one tensor. The file is complete only after <see cref="Finish"/>.
/// </summary>
/// <remarks>Tensors in ordinal order of their names and metadata <c>format = pt</c> give the bytes that Hugging Face's library writes
/// when all tensors have one dtype.</remarks>
public sealed class SafetensorsWriter : IDisposable
{
    private const int BufferBytes = 1 << 20;

    private readonly string path;
    private readonly IReadOnlyList<SafetensorsSpec> tensors;
    private readonly SafeFileHandle handle;
    private readonly SafeFileHandle? direct;
    private readonly XxHash128 hash = new();
    private readonly Memory<byte> buffer = AlignedBuffer();
    private int buffered;
    private long position;
    private int next;
    private long missingBytes;

    /// <summary>Metadata that loaders of Hugging Face expect.</summary>
    public static IReadOnlyDictionary<string, string> PyTorchFormat { get; } = new Dictionary<string, string> { ["format"] = "pt" };

    /// <summary>Creates (or replaces) the file, reserves its space and writes the header.</summary>
    /// <param name="path">The file.</param>
    /// <param name="tensors">All tensors of the file, in file order.</param>
    /// <param name="metadata">Texts for <c>__metadata__</c>; none is written when empty.</param>
    /// <exception cref="IOException">The file cannot be made, or the disk has too little space.</exception>
    public SafetensorsWriter(string path, IReadOnlyList<SafetensorsSpec> tensors, IReadOnlyDictionary<string, string> metadata)
    {
        (this.path, this.tensors) = (path, tensors);
        var header = MakeHeader(tensors, metadata);
        var length = header.Length + tensors.Sum(tensor => tensor.SizeBytes);
        handle = File.OpenHandle(path, FileMode.Create, FileAccess.Write, FileShare.None, FileOptions.None, length);
        if (length >= BufferBytes) direct = FileSync.TryOpenDirect(path);
        Append(header);
    }

    /// <summary>The first bytes of a file: length prefix and header, padded with spaces to a multiple of 8 bytes.</summary>
    public static byte[] MakeHeader(IReadOnlyList<SafetensorsSpec> tensors, IReadOnlyDictionary<string, string> metadata)
    {
        using var stream = new MemoryStream();
        stream.Write(stackalloc byte[8]);
        using (var json = new Utf8JsonWriter(stream, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            if (metadata.Count > 0)
            {
                json.WriteStartObject("__metadata__");
                foreach (var (key, value) in metadata.OrderBy(pair => pair.Key, StringComparer.Ordinal)) json.WriteString(key, value);
                json.WriteEndObject();
            }
            var offset = 0L;
            foreach (var tensor in tensors)
            {
                WriteEntry(json, tensor, offset);
                offset += tensor.SizeBytes;
            }
            json.WriteEndObject();
        }
        while (stream.Length % 8 != 0) stream.WriteByte((byte)' ');
        var header = stream.ToArray();
        BinaryPrimitives.WriteInt64LittleEndian(header, header.Length - 8);
        return header;
    }

    /// <summary>Writes the next tensor, cast to the announced dtype. Any device; the tensor stays the caller's.</summary>
    /// <exception cref="InvalidOperationException">The shape is not the one announced.</exception>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    public void Write(Tensor tensor)
    {
        var spec = Announced();
        if (!tensor.shape.AsSpan().SequenceEqual(spec.Shape))
            throw new InvalidOperationException($"{spec.Name} was announced with shape [{string.Join(", ", spec.Shape)}] and has [{string.Join(", ", tensor.shape)}].");
        var dtype = TensorBytes.ToScalarType(spec.DType) ?? throw new InvalidOperationException($"libtorch has no dtype {spec.DType}.");
        next++;
        using var cast = tensor.to(dtype, CPU);
        using var contiguous = cast.contiguous();
        TensorBytes.ForEachSlice(contiguous, (slice, _) => Append(slice));
    }

    /// <summary>Writes the next tensor, or a further piece of it, from bytes in the announced dtype.</summary>
    /// <exception cref="InvalidOperationException">More bytes than announced.</exception>
    /// <exception cref="IOException">The disk is full or failed.</exception>
    public void Write(ReadOnlySpan<byte> bytes)
    {
        if (missingBytes == 0)
        {
            missingBytes = Announced().SizeBytes;
            next++;
        }
        if (bytes.Length > missingBytes) throw new InvalidOperationException($"{tensors[next - 1].Name} gets more bytes than announced.");
        missingBytes -= bytes.Length;
        Append(bytes);
    }

    /// <summary>Writes what is buffered, waits until the file is on the device and closes it. Its folder is not synced: the caller does that once.</summary>
    /// <returns>File name without folder, length and hash.</returns>
    /// <exception cref="InvalidOperationException">A tensor is missing.</exception>
    /// <exception cref="IOException">Writing or fsync failed; the file must be given up.</exception>
    public CheckpointFile Finish()
    {
        if (next < tensors.Count || missingBytes > 0) throw new InvalidOperationException($"{path} ended after {next} of {tensors.Count} tensors.");
        FlushBuffer();
        FileSync.Flush(handle, path);
        Dispose();
        return new CheckpointFile(Path.GetFileName(path), position, Convert.ToHexStringLower(hash.GetCurrentHash()));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        handle.Dispose();
        direct?.Dispose();
    }

    // Pinned, so that the address keeps its alignment; the collector frees it, whatever becomes of the file.
    private static Memory<byte> AlignedBuffer()
    {
        var array = GC.AllocateUninitializedArray<byte>(BufferBytes + FileSync.DirectAlignment, pinned: true);
        var misplaced = (int)(Marshal.UnsafeAddrOfPinnedArrayElement(array, 0) % FileSync.DirectAlignment);
        return array.AsMemory(FileSync.DirectAlignment - misplaced, BufferBytes);
    }

    private static void WriteEntry(Utf8JsonWriter json, SafetensorsSpec tensor, long offset)
    {
        json.WriteStartObject(tensor.Name);
        json.WriteString("dtype", tensor.DType.ToString());
        json.WriteStartArray("shape");
        foreach (var extent in tensor.Shape) json.WriteNumberValue(extent);
        json.WriteEndArray();
        json.WriteStartArray("data_offsets");
        json.WriteNumberValue(offset);
        json.WriteNumberValue(offset + tensor.SizeBytes);
        json.WriteEndArray();
        json.WriteEndObject();
    }

    private SafetensorsSpec Announced()
    {
        if (missingBytes > 0) throw new InvalidOperationException($"{tensors[next - 1].Name} is not complete.");
        return next < tensors.Count ? tensors[next] : throw new InvalidOperationException($"{path} already has its {tensors.Count} tensors.");
    }

    // Writes begin at multiples of the buffer's size in the file: no page of it is ever read back or written twice, and all but the last one can
    // go past the page cache.
    private void Append(ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            var count = Math.Min(bytes.Length, BufferBytes - buffered);
            bytes[..count].CopyTo(buffer.Span[buffered..]);
            buffered += count;
            bytes = bytes[count..];
            if (buffered == BufferBytes) FlushBuffer();
        }
    }

    private void FlushBuffer()
    {
        var target = buffered == BufferBytes ? direct ?? handle : handle;
        var bytes = buffer.Span[..buffered];
        // Here they are still in the core's cache.
        hash.Append(bytes);
        RandomAccess.Write(target, bytes, position);
        position += buffered;
        buffered = 0;
    }
}
