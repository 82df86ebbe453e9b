// The "version needs" of an ELF64 little-endian image (section .gnu.version_r, System V gABI and LSB 5.0, 10.7.2):
//   Verneed  { u16 version; u16 count; u32 file;  u32 firstAux; u32 next; }
//   Vernaux  { u32 hash;    u16 flags; u16 other; u32 name;     u32 next; }
// Offsets are relative to the record that holds them; names are offsets into the linked string section.

using System.Buffers.Binary;
using System.Text;

namespace Megatron.Compute.Native;

/// <summary>Reads and edits the versions that a shared library demands of others. Pure, on a byte array.</summary>
internal static class ElfVersionNeeds
{
    private const uint SectionTypeVersionNeeds = 0x6ffffffe;
    private const ushort FlagWeak = 2;

    /// <summary>Marks the demand for <paramref name="version"/> as weak: the loader then accepts a library without it.</summary>
    /// <returns>True when such a demand was there.</returns>
    /// <exception cref="BadImageFormatException">Not a well-formed ELF64 little-endian image.</exception>
    public static bool MakeOptional(Span<byte> image, string version)
    {
        var found = false;
        foreach (var (name, auxOffset) in Entries(image))
        {
            if (name != version) continue;
            var flags = image.Slice(auxOffset + 4, 2);
            BinaryPrimitives.WriteUInt16LittleEndian(flags, (ushort)(BinaryPrimitives.ReadUInt16LittleEndian(flags) | FlagWeak));
            found = true;
        }
        return found;
    }

    /// <summary>The demanded versions and whether each is weak.</summary>
    public static IReadOnlyList<(string Version, bool IsWeak)> Read(ReadOnlySpan<byte> image)
    {
        var result = new List<(string, bool)>();
        foreach (var (name, auxOffset) in Entries(image))
        {
            result.Add((name, (BinaryPrimitives.ReadUInt16LittleEndian(image[(auxOffset + 4)..]) & FlagWeak) != 0));
        }
        return result;
    }

    private static List<(string Version, int AuxOffset)> Entries(ReadOnlySpan<byte> image)
    {
        if (image.Length < 64 || !image[..6].SequenceEqual("\u007fELF\u0002\u0001"u8)) throw new BadImageFormatException("not an ELF64 little-endian image");
        try
        {
            return EntriesOfWellFormed(image);
        }
        catch (Exception exception) when (exception is ArgumentOutOfRangeException or OverflowException or IndexOutOfRangeException)
        {
            throw new BadImageFormatException("the ELF section table points outside the file", exception);
        }
    }

    private static List<(string Version, int AuxOffset)> EntriesOfWellFormed(ReadOnlySpan<byte> image)
    {
        var entries = new List<(string, int)>();
        var sections = checked((int)BinaryPrimitives.ReadUInt64LittleEndian(image[0x28..]));
        var sectionSize = BinaryPrimitives.ReadUInt16LittleEndian(image[0x3A..]);
        var numSections = BinaryPrimitives.ReadUInt16LittleEndian(image[0x3C..]);
        for (var index = 0; index < numSections; index++)
        {
            var header = image.Slice(sections + index * sectionSize, 64);
            if (U32(header, 4) != SectionTypeVersionNeeds) continue;
            var strings = SectionOffset(image.Slice(sections + checked((int)U32(header, 0x28)) * sectionSize, 64));
            AddNeeds(image, SectionOffset(header), strings, numNeeds: U32(header, 0x2C), entries);
        }
        return entries;
    }

    private static void AddNeeds(ReadOnlySpan<byte> image, int need, int strings, uint numNeeds, List<(string, int)> entries)
    {
        for (var needIndex = 0; needIndex < numNeeds; needIndex++)
        {
            var numAux = BinaryPrimitives.ReadUInt16LittleEndian(image[(need + 2)..]);
            var aux = checked(need + (int)U32(image, need + 8));
            for (var auxIndex = 0; auxIndex < numAux; auxIndex++)
            {
                entries.Add((NameAt(image, checked(strings + (int)U32(image, aux + 8))), aux));
                aux = checked(aux + (int)U32(image, aux + 12));
            }
            need = checked(need + (int)U32(image, need + 12));
        }
    }

    private static string NameAt(ReadOnlySpan<byte> image, int offset)
    {
        var rest = image[offset..];
        return Encoding.ASCII.GetString(rest[..rest.IndexOf((byte)0)]);
    }

    private static int SectionOffset(ReadOnlySpan<byte> header) => checked((int)BinaryPrimitives.ReadUInt64LittleEndian(header[0x18..]));

    private static uint U32(ReadOnlySpan<byte> bytes, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(bytes[offset..]);
}
