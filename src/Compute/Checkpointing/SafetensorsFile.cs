using Megatron.Compute.Configuration;
using Microsoft.Win32.SafeHandles;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Reads a safetensors file (https://github.com/huggingface/safetensors, format section). The header is checked completely on opening;
/// data are read by position (pread), never mapped, so a file that changes underneath can give wrong values but no crash. Opening and
/// reading bytes need no libtorch. Not a writer: see <see cref="SafetensorsWriter"/>.
/// </summary>
public sealed class SafetensorsFile : IDisposable
{
    private readonly SafeFileHandle handle;
    private readonly SafetensorsHeader header;
    private readonly long dataStart;
    private readonly long fileBytes;

    /// <summary>Path as given to <see cref="Open"/>.</summary>
    public string Path { get; }

    /// <summary>Tensors by name, in the order of the header.</summary>
    public IReadOnlyDictionary<string, SafetensorsEntry> Tensors => header.Tensors;

    /// <summary>The <c>__metadata__</c> map; empty when absent.</summary>
    public IReadOnlyDictionary<string, string> Metadata => header.Metadata;

    /// <summary>First byte of the data in the file.</summary>
    internal long DataStart => dataStart;

    /// <summary>Length of the file when it was opened.</summary>
    internal long FileBytes => fileBytes;

    /// <summary>Opens a file and checks its header.</summary>
    /// <param name="path">The file; links are followed.</param>
    /// <param name="strict">Refuse unknown fields in tensor entries (our own checkpoints); otherwise they are ignored.</param>
    /// <exception cref="ConfigException">ST000 the file cannot be opened, ST001 to ST024 its content is refused.</exception>
    public static SafetensorsFile Open(string path, bool strict = false)
    {
        SafeFileHandle? handle = null;
        try
        {
            // A FIFO would block on opening and a device has no end; both report the length 0, which no usable file has.
            var target = File.ResolveLinkTarget(path, returnFinalTarget: true) as FileInfo ?? new FileInfo(path);
            if (target.Exists && target.Length == 0) throw SafetensorsHeader.Error("ST001", path, "the file is empty or no ordinary file; a safetensors file has at least 8 bytes");
            handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read, FileOptions.RandomAccess);
            return new SafetensorsFile(path, handle, strict);
        }
        catch (Exception exception)
        {
            handle?.Dispose();
            if (exception is FileNotFoundException or DirectoryNotFoundException)
                throw SafetensorsHeader.Error("ST000", path, "there is no such file; check the path");
            if (exception is UnauthorizedAccessException)
                throw SafetensorsHeader.Error("ST000", path, "this is a folder or a file that may not be read; check the path and its permissions");
            throw;
        }
    }

    private SafetensorsFile(string path, SafeFileHandle handle, bool strict)
    {
        (Path, this.handle) = (path, handle);
        fileBytes = RandomAccess.GetLength(handle);
        Span<byte> start = stackalloc byte[SafetensorsHeader.StartBytes];
        var headerBytes = SafetensorsHeader.ReadLength(start[..ReadUpTo(start, 0)], fileBytes, path);
        var json = new byte[headerBytes];
        ReadExactly(json, 8);
        dataStart = 8 + headerBytes;
        header = SafetensorsHeader.Parse(json, fileBytes - dataStart, path, strict);
    }

    /// <summary>The entry of a tensor.</summary>
    /// <exception cref="ConfigException">ST030: the file has no such tensor.</exception>
    public SafetensorsEntry Entry(string name) =>
        Tensors.TryGetValue(name, out var entry) ? entry : throw SafetensorsHeader.Error("ST030", Path, $"it has no tensor {Printable.Quote(name)}");

    /// <summary>Fills <paramref name="destination"/> with bytes of a tensor, beginning <paramref name="offsetBytes"/> into it.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The range leaves the tensor.</exception>
    /// <exception cref="ConfigException">ST023: the file became shorter after it was opened. ST030: no such tensor.</exception>
    public void Read(string name, long offsetBytes, Span<byte> destination)
    {
        var entry = Entry(name);
        if (offsetBytes < 0 || offsetBytes + destination.Length > entry.SizeBytes)
            throw new ArgumentOutOfRangeException(nameof(offsetBytes), $"Bytes {offsetBytes} to {offsetBytes + destination.Length} lie outside {name}, which has {entry.SizeBytes}.");
        for (var done = 0; done < destination.Length; done += TensorBytes.SliceBytes)
            ReadExactly(destination.Slice(done, Math.Min(TensorBytes.SliceBytes, destination.Length - done)), dataStart + entry.Begin + offsetBytes + done);
    }

    /// <summary>Reads a whole tensor into a new CPU tensor of the file's dtype and shape; the caller's dispose scope owns it.</summary>
    /// <exception cref="ConfigException">ST009: libtorch has no such dtype. ST023, ST030: see <see cref="Read"/>.</exception>
    public Tensor ReadTensor(string name)
    {
        var entry = Entry(name);
        var tensor = empty(entry.Shape, dtype: LoadableType(entry), device: CPU);
        ReadContiguous(entry, 0, tensor);
        return tensor;
    }

    /// <summary>
    /// Reads elements [<paramref name="begin"/>, <paramref name="begin"/> + destination.numel()) of a tensor in row-major order into
    /// <paramref name="destination"/> (any shape, dtype and device; values are cast).
    /// </summary>
    /// <exception cref="ArgumentOutOfRangeException">The range leaves the tensor.</exception>
    /// <exception cref="ConfigException">ST009, ST023, ST030: see <see cref="ReadTensor"/>.</exception>
    public void ReadInto(string name, Tensor destination, long begin)
    {
        var entry = Entry(name);
        var count = destination.numel();
        if (begin < 0 || begin + count > entry.NumElements)
            throw new ArgumentOutOfRangeException(nameof(begin), $"Elements {begin} to {begin + count} lie outside {name}, which has {entry.NumElements}.");
        var dtype = LoadableType(entry);
        if (destination.dtype == dtype && destination.device_type == TorchSharp.DeviceType.CPU && destination.is_contiguous())
        {
            ReadContiguous(entry, begin, destination);
            return;
        }
        using var staging = empty(destination.shape, dtype: dtype, device: CPU);
        ReadContiguous(entry, begin, staging);
        destination.copy_(staging);
    }

    /// <inheritdoc/>
    public void Dispose() => handle.Dispose();

    /// <summary>Reads bytes of the file itself, header included.</summary>
    internal void ReadRaw(Span<byte> destination, long position) => ReadExactly(destination, position);

    internal ScalarType LoadableType(SafetensorsEntry entry) =>
        TensorBytes.ToScalarType(entry.DType) ?? throw SafetensorsHeader.Error("ST009", Path, $"tensor {Printable.Quote(entry.Name)} has dtype {entry.DType}, which cannot be loaded; convert the file to BF16, F16 or F32");

    private void ReadContiguous(SafetensorsEntry entry, long begin, Tensor destination)
    {
        var start = dataStart + entry.Begin + begin * entry.DType.SizeBytes();
        TensorBytes.ForEachSlice(destination, (slice, offset) => ReadExactly(slice, start + offset));
    }

    private void ReadExactly(Span<byte> destination, long position)
    {
        if (ReadUpTo(destination, position) < destination.Length)
            throw SafetensorsHeader.Error("ST023", Path, $"the file had {fileBytes} bytes when it was opened and has become shorter; nothing may write to it while it is read");
    }

    private int ReadUpTo(Span<byte> destination, long position)
    {
        var done = 0;
        while (done < destination.Length)
        {
            var count = RandomAccess.Read(handle, destination[done..], position + done);
            if (count == 0) break;
            done += count;
        }
        return done;
    }
}
