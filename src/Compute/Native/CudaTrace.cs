// CUPTI's activity records (cupti_activity.h of CUDA 12 and 13): what ran on the GPU, when, on which stream. PyTorch's libtorch brings and maps
// CUPTI. The collector of a process is CUPTI's own global state, so one trace runs at a time.

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Megatron.Compute.Configuration;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>One piece of work on the GPU. Times in nanoseconds of CUPTI's clock.</summary>
/// <param name="Name">Kernel name, demangled as far as its first bracket, or <c>memcpy</c>, <c>memset</c>.</param>
/// <param name="Stream">CUPTI's number of the stream.</param>
public readonly record struct CudaActivity(string Name, long StartNs, long EndNs, uint Stream)
{
    /// <summary>Time on the GPU.</summary>
    public long DurationNs => EndNs - StartNs;
}

/// <summary>Records every kernel, copy and fill of a stretch of work.</summary>
public static unsafe class CudaTrace
{
    private const int KindMemcpy = 1, KindMemset = 2, KindConcurrentKernel = 10;
    private const int BufferBytes = 8 << 20;
    private const int StartOffset = 16, EndOffset = 24; // the same in the records of kernels, copies and fills
    private const int KernelStreamOffset = 48, KernelNameOffset = 104, CopyStreamOffset = 40;

    private static readonly Lock gate = new();
    private static readonly List<CudaActivity> collected = [];
    private static delegate* unmanaged<byte*, nuint, byte**, int> getNextRecord;

    /// <summary>Runs <paramref name="work"/>, waits for the device and returns what ran on it, in order of start.</summary>
    /// <exception cref="ConfigException">GPU003: CUPTI is not there or refuses.</exception>
    public static IReadOnlyList<CudaActivity> Record(Action work)
    {
        lock (gate)
        {
            var library = FindCupti();
            var registerCallbacks = (delegate* unmanaged<nint, nint, int>)Export(library, "cuptiActivityRegisterCallbacks");
            var enable = (delegate* unmanaged<int, int>)Export(library, "cuptiActivityEnable");
            var disable = (delegate* unmanaged<int, int>)Export(library, "cuptiActivityDisable");
            var flush = (delegate* unmanaged<uint, int>)Export(library, "cuptiActivityFlushAll");
            getNextRecord = (delegate* unmanaged<byte*, nuint, byte**, int>)Export(library, "cuptiActivityGetNextRecord");
            var getTimestamp = (delegate* unmanaged<ulong*, int>)Export(library, "cuptiGetTimestamp");
            var begin = 0UL;
            collected.Clear();
            delegate* unmanaged[Cdecl]<byte**, nuint*, nuint*, void> requested = &BufferRequested;
            delegate* unmanaged[Cdecl]<nint, uint, byte*, nuint, nuint, void> completed = &BufferCompleted;
            Check(registerCallbacks((nint)requested, (nint)completed), "cuptiActivityRegisterCallbacks");
            ReadOnlySpan<int> kinds = [KindConcurrentKernel, KindMemcpy, KindMemset];
            foreach (var kind in kinds) Check(enable(kind), "cuptiActivityEnable");
            try
            {
                // CUPTI makes its buffers at the first record: milliseconds in which the GPU would seem to wait for the work.
                zeros(1, device: CUDA).Dispose();
                StableAbi.Check(LibTorch.CudaAbi.DeviceSynchronize(), "cudaDeviceSynchronize");
                Check(getTimestamp(&begin), "cuptiGetTimestamp");
                work();
                StableAbi.Check(LibTorch.CudaAbi.DeviceSynchronize(), "cudaDeviceSynchronize");
            }
            finally
            {
                foreach (var kind in kinds) disable(kind);
                flush(1);
            }
            var first = begin;
            return [.. collected.Where(activity => (ulong)activity.StartNs >= first).OrderBy(activity => activity.StartNs)];
        }
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static void BufferRequested(byte** buffer, nuint* size, nuint* maxRecords)
    {
        *buffer = (byte*)NativeMemory.AlignedAlloc(BufferBytes, 8);
        (*size, *maxRecords) = (BufferBytes, 0);
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static void BufferCompleted(nint context, uint stream, byte* buffer, nuint size, nuint validSize)
    {
        byte* record = null;
        lock (collected)
            while (validSize > 0 && getNextRecord(buffer, validSize, &record) == 0)
                if (Read(record) is { } activity) collected.Add(activity);
        NativeMemory.AlignedFree(buffer);
    }

    private static CudaActivity? Read(byte* record)
    {
        var kind = *(int*)record;
        var (start, end) = (*(long*)(record + StartOffset), *(long*)(record + EndOffset));
        return kind switch
        {
            KindConcurrentKernel => new CudaActivity(
                ShortName(Marshal.PtrToStringUTF8(*(nint*)(record + KernelNameOffset)) ?? "?"), start, end, *(uint*)(record + KernelStreamOffset)),
            KindMemcpy => new CudaActivity("memcpy", start, end, *(uint*)(record + CopyStreamOffset)),
            KindMemset => new CudaActivity("memset", start, end, *(uint*)(record + CopyStreamOffset)),
            _ => null,
        };
    }

    /// <summary>
    /// The identifiers inside a mangled C++ name (a length, then so many letters), without the namespaces that say nothing; other names as they are.
    /// </summary>
    private static string ShortName(string name)
    {
        if (!name.StartsWith("_Z", StringComparison.Ordinal)) return name;
        var parts = new StringBuilder();
        for (var i = 2; i < name.Length && parts.Length < 120;)
        {
            var length = 0;
            while (i < name.Length && char.IsAsciiDigit(name[i])) length = 10 * length + (name[i++] - '0');
            if (length == 0 || i + length > name.Length)
            {
                i++;
                continue;
            }
            var part = name.AsSpan(i, length);
            i += length;
            if (part is "at" or "native" or "c10" || part.StartsWith("_GLOBAL_", StringComparison.Ordinal)) continue;
            if (parts.Length > 0) parts.Append(':');
            parts.Append(part);
        }
        return parts.Length == 0 ? name : parts.ToString();
    }

    private static nint FindCupti()
    {
        foreach (var line in File.ReadLines("/proc/self/maps"))
        {
            var start = line.IndexOf('/', StringComparison.Ordinal);
            if (start >= 0 && Path.GetFileName(line[start..]).StartsWith("libcupti.so", StringComparison.Ordinal)) return NativeLibrary.Load(line[start..]);
        }
        throw new ConfigException("GPU003", "profile: libcupti, NVIDIA's profiling library, is not loaded by this libtorch; use the libtorch of an installed PyTorch (MEGATRON_LIBTORCH).");
    }

    private static nint Export(nint library, string name) => NativeLibrary.GetExport(library, name);

    private static void Check(int status, string function)
    {
        if (status != 0) throw new ConfigException("GPU003", $"profile: {function} failed with status {status}; another profiler may hold the GPU, or its driver refuses profiling.");
    }
}
