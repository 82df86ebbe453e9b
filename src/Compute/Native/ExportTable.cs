// The dynamic symbol table of a loaded library (System V gABI, chapter 5, "Symbol Table"):
//   Elf64_Sym { u32 name; u8 info; u8 other; u16 section; u64 value; u64 size; }    address of the symbol = load address + value, modulo 2^64

using System.Runtime.InteropServices;

namespace Megatron.Compute.Native;

/// <summary>Edits which address a loaded library answers for one of its names. No code is touched: only later look-ups of the name see it.</summary>
internal static unsafe partial class ExportTable
{
    private const int SymbolEntry = 1; // RTLD_DL_SYMENT of dladdr1(3)
    private const int ProtectRead = 1;
    private const int ProtectWrite = 2;
    private const int OffsetOfValue = 8;

    /// <summary>Lets the export at <paramref name="original"/> resolve to <paramref name="replacement"/> from now on.</summary>
    /// <returns>False when no symbol has that address, or its page cannot be written.</returns>
    public static bool TryRedirect(nint original, nint replacement)
    {
        if (FindSymbol(original, out var place, out var symbol, SymbolEntry) == 0 || symbol == null) return false;
        var value = (ulong*)(symbol + OffsetOfValue);
        if ((nint)((ulong)place.Base + *value) != original) return false;

        var pageMask = ~((nint)Environment.SystemPageSize - 1);
        var firstPage = (nint)value & pageMask;
        var length = (nuint)(((nint)value + sizeof(ulong) - 1 & pageMask) + Environment.SystemPageSize - firstPage);
        if (Protect(firstPage, length, ProtectRead | ProtectWrite) != 0) return false;
        *value = (ulong)replacement - (ulong)place.Base;
        return Protect(firstPage, length, ProtectRead) == 0;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Place
    {
        public nint FileName;
        public nint Base;
        public nint SymbolName;
        public nint SymbolAddress;
    }

    [LibraryImport("libc", EntryPoint = "dladdr1")]
    private static partial int FindSymbol(nint address, out Place place, out byte* symbol, int what);

    [LibraryImport("libc", EntryPoint = "mprotect")]
    private static partial int Protect(nint address, nuint length, int protection);
}
