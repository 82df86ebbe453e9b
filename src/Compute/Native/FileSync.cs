using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Native;

/// <summary>
/// Durable file operations with checked return codes. <c>FileStream.Flush(true)</c> and <c>RandomAccess.FlushToDisk</c> swallow an EIO of
/// fsync, and .NET opens no folders, so a checkpoint calls libc itself. Every failure is an <see cref="IOException"/> that names the path.
/// </summary>
/// <remarks>After a failed fsync the kernel may have marked the pages clean: write a new file, never repeat fsync on the same one.</remarks>
public static partial class FileSync
{
    /// <summary>Of direct writes, in bytes; enough for every device in use.</summary>
    internal const int DirectAlignment = 4096;

    private const int ReadOnlyFlag = 0;
    private const int WriteOnlyFlag = 1;
    private const int DirectFlag = 0x4000;
    private const int CloseOnExecFlag = 0x80000;
    private const int CurrentFolder = -100;
    private const uint ExchangeFlag = 2;
    private const int ErrorNoSys = 38;
    private const int ErrorInvalid = 22;

    /// <summary>Waits until the data and length of an open file are on the device.</summary>
    /// <exception cref="IOException">fsync failed; the content of the file is unknown from now on.</exception>
    public static void Flush(SafeFileHandle handle, string path)
    {
        if (FsyncHandle(handle) != 0) throw Failure("fsync", path, Marshal.GetLastPInvokeError());
    }

    /// <summary>Waits until an existing file, or the entries of a folder, are on the device.</summary>
    /// <exception cref="IOException">The path cannot be opened or fsync failed.</exception>
    public static void FlushPath(string path)
    {
        var descriptor = Open(path, ReadOnlyFlag | CloseOnExecFlag);
        if (descriptor < 0) throw Failure("open", path, Marshal.GetLastPInvokeError());
        var result = FsyncDescriptor(descriptor);
        var error = Marshal.GetLastPInvokeError();
        _ = Close(descriptor);
        if (result != 0) throw Failure("fsync", path, error);
    }

    /// <summary>
    /// Opens an existing file for writes that go past the page cache (O_DIRECT): gigabytes reach the device at a tenth of the processor time, and
    /// push nothing else out of memory. Addresses, offsets and lengths must be multiples of <see cref="DirectAlignment"/>.
    /// </summary>
    /// <returns>Null when the file system has no such writes.</returns>
    internal static SafeFileHandle? TryOpenDirect(string path)
    {
        var descriptor = Open(path, WriteOnlyFlag | DirectFlag | CloseOnExecFlag);
        return descriptor < 0 ? null : new SafeFileHandle(descriptor, ownsHandle: true);
    }

    /// <summary>
    /// Renames a file or folder in one step; an existing file at <paramref name="to"/> is replaced. Both paths must be on one mount:
    /// unlike <c>File.Move</c> this never falls back to copying.
    /// </summary>
    /// <exception cref="IOException">rename failed, for example because a folder with content stands at <paramref name="to"/>.</exception>
    public static void Rename(string from, string to)
    {
        if (RenamePath(from, to) != 0) throw Failure("rename", $"{from} -> {to}", Marshal.GetLastPInvokeError());
    }

    /// <summary>Swaps two existing paths in one step.</summary>
    /// <returns>False when the file system has no such operation; nothing changed then.</returns>
    /// <exception cref="IOException">The exchange failed for another reason.</exception>
    public static bool TryExchange(string first, string second)
    {
        if (RenameAt2(CurrentFolder, first, CurrentFolder, second, ExchangeFlag) == 0) return true;
        var error = Marshal.GetLastPInvokeError();
        return error is ErrorNoSys or ErrorInvalid ? false : throw Failure("exchange", $"{first} <-> {second}", error);
    }

    /// <summary>
    /// Replaces a small text file so that a reader sees the old or the new content, never a torn one: temporary file, fsync, rename,
    /// fsync of the folder.
    /// </summary>
    /// <exception cref="IOException">Any of the steps failed; the old file stands.</exception>
    public static void ReplaceFile(string path, ReadOnlySpan<byte> content)
    {
        var temporary = path + ".tmp";
        using (var handle = File.OpenHandle(temporary, FileMode.Create, FileAccess.Write))
        {
            RandomAccess.Write(handle, content, 0);
            Flush(handle, temporary);
        }
        Rename(temporary, path);
        FlushPath(Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/");
    }

    private static IOException Failure(string operation, string path, int error) =>
        new($"{operation} of {path} failed: {Marshal.GetPInvokeErrorMessage(error)} (errno {error.ToString(System.Globalization.CultureInfo.InvariantCulture)}).");

    [LibraryImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static partial int FsyncHandle(SafeFileHandle handle);

    [LibraryImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static partial int FsyncDescriptor(int descriptor);

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);

    [LibraryImport("libc", EntryPoint = "close", SetLastError = true)]
    private static partial int Close(int descriptor);

    [LibraryImport("libc", EntryPoint = "rename", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int RenamePath(string from, string to);

    [LibraryImport("libc", EntryPoint = "renameat2", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int RenameAt2(int fromFolder, string from, int toFolder, string to, uint flags);
}
