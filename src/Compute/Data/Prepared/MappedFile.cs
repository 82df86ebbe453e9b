using System.IO.MemoryMappedFiles;
using System.Runtime.InteropServices;

namespace Megatron.Compute.Data.Prepared;

/// <summary>A whole file mapped for reading. Spans into it are valid until it is disposed.</summary>
internal sealed unsafe class MappedFile : IDisposable
{
    private readonly MemoryMappedFile? _file;
    private readonly MemoryMappedViewAccessor? _view;
    private readonly byte* _bytes;

    public MappedFile(string path)
    {
        Length = new FileInfo(path).Length;
        if (Length == 0) return; // an empty file cannot be mapped
        _file = MemoryMappedFile.CreateFromFile(path, FileMode.Open, mapName: null, capacity: 0, MemoryMappedFileAccess.Read);
        _view = _file.CreateViewAccessor(0, 0, MemoryMappedFileAccess.Read);
        _view.SafeMemoryMappedViewHandle.AcquirePointer(ref _bytes);
    }

    /// <summary>Bytes of the file.</summary>
    public long Length { get; }

    /// <summary>A stretch of the file.</summary>
    public ReadOnlySpan<byte> Slice(long offset, int length)
    {
        if (offset < 0 || length < 0 || offset > Length - length) throw new ArgumentOutOfRangeException(nameof(offset), $"bytes {offset} … {offset + length} of {Length}");
        return new ReadOnlySpan<byte>(_bytes + offset, length);
    }

    /// <summary>Entry <paramref name="index"/> of a file of equal entries.</summary>
    public T Entry<T>(int index) where T : unmanaged => MemoryMarshal.Read<T>(Slice((long)index * sizeof(T), sizeof(T)));

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_view is null) return;
        _view.SafeMemoryMappedViewHandle.ReleasePointer();
        _view.Dispose();
        _file?.Dispose();
    }
}
