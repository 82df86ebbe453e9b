// NVIDIA's collective library by P/Invoke (nccl.h, 2.18 and later). No NuGet package brings it: PyTorch does, or the system.

using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>Return codes of NCCL that are looked at.</summary>
internal enum NcclResult
{
    Success = 0,
    InProgress = 7,
}

/// <summary>128 opaque bytes by which the ranks of a communicator find one another.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NcclUniqueId
{
    public const int Size = 128;

    public fixed byte Bytes[Size];
}

/// <summary>
/// The leading part of <c>ncclConfig_t</c> as of version 2.17; the library fills in what later versions added.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct NcclConfig
{
    private const int Undefined = int.MinValue;

    public nuint Size;
    public uint Magic;
    public uint Version;
    public int Blocking;
    public int CgaClusterSize;
    public int MinCtas;
    public int MaxCtas;
    public nint NetName;

    /// <summary>Calls return at once, so that an abort from another thread never finds one inside the library.</summary>
    public static NcclConfig NonBlocking => new()
    {
        Size = (nuint)Marshal.SizeOf<NcclConfig>(), Magic = 0xcafebeef, Version = 21700, Blocking = 0,
        CgaClusterSize = Undefined, MinCtas = Undefined, MaxCtas = Undefined, NetName = 0,
    };
}

/// <summary>The functions of one loaded NCCL.</summary>
internal sealed unsafe class Nccl
{
    /// <summary>Oldest version with everything called here.</summary>
    private const int OldestVersion = 21800;

    public readonly delegate* unmanaged<NcclUniqueId*, NcclResult> GetUniqueId;
    public readonly delegate* unmanaged<nint*, int, NcclUniqueId, int, NcclConfig*, NcclResult> CommInitRankConfig;
    public readonly delegate* unmanaged<nint, NcclResult*, NcclResult> CommGetAsyncError;
    public readonly delegate* unmanaged<nint, NcclResult> CommAbort;
    public readonly delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult> AllReduce;
    public readonly delegate* unmanaged<nint, nint, nuint, int, nint, nint, NcclResult> AllGather;
    public readonly delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult> ReduceScatter;
    public readonly delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult> Broadcast;
    public readonly delegate* unmanaged<nint, nuint, int, int, nint, nint, NcclResult> Send;
    public readonly delegate* unmanaged<nint, nuint, int, int, nint, nint, NcclResult> Receive;
    public readonly delegate* unmanaged<NcclResult> GroupStart;
    public readonly delegate* unmanaged<NcclResult> GroupEnd;

    private readonly delegate* unmanaged<NcclResult, byte*> getErrorString;
    private readonly delegate* unmanaged<nint, byte*> getLastError;

    /// <summary>As NCCL counts: 22809 is 2.28.9.</summary>
    public int Version { get; }

    private Nccl(nint library)
    {
        int version;
        ((delegate* unmanaged<int*, NcclResult>)Export(library, "ncclGetVersion"))(&version);
        Version = version;
        if (version < OldestVersion)
            throw new ConfigException("NATIVE014", $"NCCL {Text(version)} is too old for training on several GPUs; {Text(OldestVersion)} or later is needed (pip: nvidia-nccl-cu12 or -cu13).");
        GetUniqueId = (delegate* unmanaged<NcclUniqueId*, NcclResult>)Export(library, "ncclGetUniqueId");
        CommInitRankConfig = (delegate* unmanaged<nint*, int, NcclUniqueId, int, NcclConfig*, NcclResult>)Export(library, "ncclCommInitRankConfig");
        CommGetAsyncError = (delegate* unmanaged<nint, NcclResult*, NcclResult>)Export(library, "ncclCommGetAsyncError");
        CommAbort = (delegate* unmanaged<nint, NcclResult>)Export(library, "ncclCommAbort");
        AllReduce = (delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult>)Export(library, "ncclAllReduce");
        AllGather = (delegate* unmanaged<nint, nint, nuint, int, nint, nint, NcclResult>)Export(library, "ncclAllGather");
        ReduceScatter = (delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult>)Export(library, "ncclReduceScatter");
        Broadcast = (delegate* unmanaged<nint, nint, nuint, int, int, nint, nint, NcclResult>)Export(library, "ncclBroadcast");
        Send = (delegate* unmanaged<nint, nuint, int, int, nint, nint, NcclResult>)Export(library, "ncclSend");
        Receive = (delegate* unmanaged<nint, nuint, int, int, nint, nint, NcclResult>)Export(library, "ncclRecv");
        GroupStart = (delegate* unmanaged<NcclResult>)Export(library, "ncclGroupStart");
        GroupEnd = (delegate* unmanaged<NcclResult>)Export(library, "ncclGroupEnd");
        getErrorString = (delegate* unmanaged<NcclResult, byte*>)Export(library, "ncclGetErrorString");
        getLastError = (delegate* unmanaged<nint, byte*>)Export(library, "ncclGetLastError");
    }

    /// <summary>
    /// Looks for the copy that libtorch has mapped, PyTorch's package beside libtorch, the dynamic loader's places, and at last for the
    /// functions inside libtorch_cuda itself.
    /// </summary>
    /// <exception cref="ConfigException">NATIVE013: no NCCL. NATIVE014: too old.</exception>
    public static Nccl Load(LoadedLibTorch libTorch)
    {
        // Members connect when a communicator is opened, not at its first operation: an operation must not wait for its peers to be started.
        SetEnvironment("NCCL_RUNTIME_CONNECT", "0", overwrite: 0);
        if (FindMapped() is { } mapped) return new Nccl(NativeLibrary.Load(mapped));
        string[] places =
        [
            Path.Combine(libTorch.Folder, "libnccl.so.2"),
            Path.GetFullPath(Path.Combine(libTorch.Folder, "..", "..", "nvidia", "nccl", "lib", "libnccl.so.2")),
            "libnccl.so.2",
        ];
        foreach (var place in places)
            if (NativeLibrary.TryLoad(place, out var library)) return new Nccl(library);
        if (NativeLibrary.TryLoad(Path.Combine(libTorch.Folder, "libtorch_cuda.so"), out var inside) && NativeLibrary.TryGetExport(inside, "ncclAllReduce", out _)) return new Nccl(inside);
        throw new ConfigException(
            "NATIVE013", $"Training on several GPUs needs NCCL, and libnccl.so.2 was not found (looked at {string.Join(", ", places)}); "
            + "install it (pip: nvidia-nccl-cu13, Debian: libnccl2), put its folder on LD_LIBRARY_PATH, or train on one GPU.");
    }

    /// <summary>What a code means, with the library's last words about <paramref name="communicator"/> (0: none).</summary>
    public string Describe(NcclResult result, nint communicator)
    {
        var last = Marshal.PtrToStringUTF8((nint)getLastError(communicator));
        return $"{Marshal.PtrToStringUTF8((nint)getErrorString(result))} ({(int)result}){(string.IsNullOrWhiteSpace(last) ? "" : ": " + last.Trim())}";
    }

    /// <summary>For native code of this process; .NET's own function does not reach it.</summary>
    [DllImport("libc", EntryPoint = "setenv", BestFitMapping = false, ThrowOnUnmappableChar = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.System32)]
    internal static extern int SetEnvironment([MarshalAs(UnmanagedType.LPStr)] string name, [MarshalAs(UnmanagedType.LPStr)] string value, int overwrite);

    private static string Text(int version) => $"{version / 10000}.{version / 100 % 100}.{version % 100}";

    private static string? FindMapped()
    {
        foreach (var line in File.ReadLines("/proc/self/maps"))
        {
            var start = line.IndexOf('/', StringComparison.Ordinal);
            if (start >= 0 && Path.GetFileName(line[start..]).StartsWith("libnccl.so", StringComparison.Ordinal)) return line[start..];
        }
        return null;
    }

    private static nint Export(nint library, string name) => NativeLibrary.TryGetExport(library, name, out var address)
        ? address
        : throw new ConfigException("NATIVE014", $"The NCCL library found lacks {name}; install version {Text(OldestVersion)} or later.");
}
