using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using Megatron.Compute.Configuration;
using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>
/// The zip archive that <c>torch.save</c> writes, lying inside a larger file: its directory, read by position. Entries are stored, never packed;
/// names are keys and never paths.
/// </summary>
internal sealed class TorchArchive
{
    private const uint EndMark = 0x06054b50, End64Mark = 0x06064b50, Locator64Mark = 0x07064b50, EntryMark = 0x02014b50, LocalMark = 0x04034b50;
    private const int EndBytes = 22, Locator64Bytes = 20, End64Bytes = 56, EntryBytes = 46, LocalBytes = 30;
    private const long DirectoryBytesMax = 1 << 20;

    private readonly SafeFileHandle handle;
    private readonly long begin;
    private readonly long length;
    private readonly string source;
    private readonly Dictionary<string, (long Header, long SizeBytes)> entries = new(StringComparer.Ordinal);

    /// <summary>Reads the directory of an archive.</summary>
    /// <param name="handle">The file.</param>
    /// <param name="begin">First byte of the archive.</param>
    /// <param name="length">Bytes of the archive.</param>
    /// <param name="source">Named in error messages.</param>
    /// <exception cref="ConfigException">MCORE005.</exception>
    public TorchArchive(SafeFileHandle handle, long begin, long length, string source)
    {
        (this.handle, this.begin, this.length, this.source) = (handle, begin, length, source);
        var (offset, size, count) = FindDirectory();
        if (size > DirectoryBytesMax || offset < 0 || size < 0 || offset > length - size) throw Damaged("its directory lies outside");
        ReadDirectory(Read(offset, (int)size), count);
    }

    /// <summary>Where the data of an entry lie in the file. Entries are found by the end of their names: the first part is the archive's own.</summary>
    /// <exception cref="ConfigException">MCORE005.</exception>
    public (long Position, long SizeBytes) Find(string name)
    {
        var found = entries.Where(entry => entry.Key.EndsWith("/" + name, StringComparison.Ordinal)).ToList();
        if (found.Count != 1) throw Damaged($"it has {found.Count} entries {Printable.Quote(name)} instead of one");
        var (header, size) = found[0].Value;
        if (header < 0 || header > length - LocalBytes) throw Damaged($"entry {Printable.Quote(name)} lies outside");
        var local = Read(header, LocalBytes);
        if (BinaryPrimitives.ReadUInt32LittleEndian(local) != LocalMark) throw Damaged($"entry {Printable.Quote(name)} has no header");
        var data = header + LocalBytes + BinaryPrimitives.ReadUInt16LittleEndian(local.AsSpan(26)) + BinaryPrimitives.ReadUInt16LittleEndian(local.AsSpan(28));
        if (size < 0 || data > length - size) throw Damaged($"entry {Printable.Quote(name)} lies outside");
        return (begin + data, size);
    }

    /// <summary>Content of a small entry.</summary>
    /// <exception cref="ConfigException">MCORE005, also when it has more than <paramref name="sizeBytesMax"/> bytes.</exception>
    public byte[] ReadEntry(string name, int sizeBytesMax)
    {
        var (position, size) = Find(name);
        if (size > sizeBytesMax) throw Damaged($"entry {Printable.Quote(name)} has {size} bytes");
        return Read(position - begin, (int)size);
    }

    /// <summary>True when the archive has an entry.</summary>
    public bool Has(string name) => entries.Keys.Any(key => key.EndsWith("/" + name, StringComparison.Ordinal));

    // torch.save writes no comment, so the end record is the last thing in the archive, after its 64-bit form.
    private (long Offset, long Size, long Count) FindDirectory()
    {
        if (length < EndBytes) throw Damaged("it is too short");
        var end = Read(length - EndBytes, EndBytes);
        if (BinaryPrimitives.ReadUInt32LittleEndian(end) != EndMark) throw Damaged("it has no end record");
        if (length >= EndBytes + Locator64Bytes)
        {
            var locator = Read(length - EndBytes - Locator64Bytes, Locator64Bytes);
            if (BinaryPrimitives.ReadUInt32LittleEndian(locator) == Locator64Mark) return FindDirectory64(BinaryPrimitives.ReadInt64LittleEndian(locator.AsSpan(8)));
        }
        return (BinaryPrimitives.ReadUInt32LittleEndian(end.AsSpan(16)), BinaryPrimitives.ReadUInt32LittleEndian(end.AsSpan(12)), BinaryPrimitives.ReadUInt16LittleEndian(end.AsSpan(10)));
    }

    private (long Offset, long Size, long Count) FindDirectory64(long position)
    {
        if (position < 0 || position > length - End64Bytes) throw Damaged("its 64-bit end record lies outside");
        var end = Read(position, End64Bytes);
        if (BinaryPrimitives.ReadUInt32LittleEndian(end) != End64Mark) throw Damaged("it has no 64-bit end record");
        return (BinaryPrimitives.ReadInt64LittleEndian(end.AsSpan(48)), BinaryPrimitives.ReadInt64LittleEndian(end.AsSpan(40)), BinaryPrimitives.ReadInt64LittleEndian(end.AsSpan(32)));
    }

    private void ReadDirectory(ReadOnlySpan<byte> directory, long count)
    {
        for (var i = 0L; i < count; i++)
        {
            if (directory.Length < EntryBytes || BinaryPrimitives.ReadUInt32LittleEndian(directory) != EntryMark) throw Damaged("its directory is cut off");
            var method = BinaryPrimitives.ReadUInt16LittleEndian(directory[10..]);
            long packed = BinaryPrimitives.ReadUInt32LittleEndian(directory[20..]), size = BinaryPrimitives.ReadUInt32LittleEndian(directory[24..]);
            int nameBytes = BinaryPrimitives.ReadUInt16LittleEndian(directory[28..]), extraBytes = BinaryPrimitives.ReadUInt16LittleEndian(directory[30..]);
            int commentBytes = BinaryPrimitives.ReadUInt16LittleEndian(directory[32..]);
            long header = BinaryPrimitives.ReadUInt32LittleEndian(directory[42..]);
            if (directory.Length < EntryBytes + nameBytes + extraBytes + commentBytes) throw Damaged("its directory is cut off");
            var name = Encoding.Latin1.GetString(directory.Slice(EntryBytes, nameBytes));
            ReadExtra(directory.Slice(EntryBytes + nameBytes, extraBytes), ref size, ref packed, ref header);
            if (method != 0 || packed != size) throw Damaged($"entry {Printable.Quote(name)} is packed");
            if (!entries.TryAdd(name, (header, size))) throw Damaged($"entry {Printable.Quote(name)} is listed twice");
            directory = directory[(EntryBytes + nameBytes + extraBytes + commentBytes)..];
        }
    }

    /// <summary>The 64-bit values of an entry: those whose 32-bit field is full, in this order.</summary>
    private static void ReadExtra(ReadOnlySpan<byte> extra, ref long size, ref long packed, ref long header)
    {
        while (extra.Length >= 4)
        {
            int kind = BinaryPrimitives.ReadUInt16LittleEndian(extra), fieldBytes = BinaryPrimitives.ReadUInt16LittleEndian(extra[2..]);
            if (fieldBytes > extra.Length - 4) return;
            if (kind == 1)
            {
                var field = extra.Slice(4, fieldBytes);
                Widen(ref size, ref field);
                Widen(ref packed, ref field);
                Widen(ref header, ref field);
            }
            extra = extra[(4 + fieldBytes)..];
        }
    }

    private static void Widen(ref long value, ref ReadOnlySpan<byte> field)
    {
        if (value != uint.MaxValue || field.Length < 8) return;
        value = BinaryPrimitives.ReadInt64LittleEndian(field);
        field = field[8..];
    }

    private byte[] Read(long offset, int count)
    {
        var bytes = new byte[count];
        for (var done = 0; done < count;)
        {
            var read = RandomAccess.Read(handle, bytes.AsSpan(done), begin + offset + done);
            if (read == 0) throw Damaged("the file is cut off");
            done += read;
        }
        return bytes;
    }

    private ConfigException Damaged(string what) =>
        new("MCORE005", string.Create(CultureInfo.InvariantCulture, $"{source}: the archive at byte {begin} is refused, {what}; the file is damaged."));
}
