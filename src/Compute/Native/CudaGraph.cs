// libtorch's own graph class (ATen/cuda/CUDAGraph.h), called by the exported names of its members: its beginning and end tell the caching
// allocator that memory handed out in between belongs to the graph, which no C function does. `this` is the first argument, and a
// std::pair of two 64-bit numbers travels in two registers (Itanium C++ ABI, System V AMD64). The names are those of libtorch 2.10 and 2.11; where one
// is missing the feature is refused.

using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>
/// GPU work recorded once and started again as a whole: one launch by the host instead of one for each kernel. The work keeps its addresses: what it
/// reads must be where it was, and memory that it took while it was recorded stays its own.
/// </summary>
public sealed unsafe class CudaGraph : IDisposable
{
    private const nuint ObjectBytes = 4096; // the class has some 200
    private const int ThreadLocalMode = 1;  // cudaStreamCaptureModeThreadLocal: other threads may go on calling CUDA

    private byte* graph;

    private CudaGraph()
    {
        graph = (byte*)NativeMemory.AlignedAlloc(ObjectBytes, 64);
        NativeMemory.Clear(graph, ObjectBytes);
        Members.Construct(graph, 0);
    }

    /// <summary>
    /// Records what <paramref name="work"/> puts on the current stream; nothing of it runs yet. It must not wait for the device, nor copy from host
    /// memory that is not page-locked, and all it needs has been made before (compiled kernels, plans, workspaces): run it once beforehand on the same stream.
    /// </summary>
    /// <param name="stream">Not libtorch's default stream.</param>
    /// <exception cref="ConfigException">NATIVE015: this libtorch has no such class.</exception>
    internal static CudaGraph Record(CudaStream stream, Action work)
    {
        Members.Require();
        var result = new CudaGraph();
        using var current = stream.MakeCurrent();
        StableAbi.Check(LibTorch.CudaAbi.DeviceSynchronize(), "cudaDeviceSynchronize");
        Members.CaptureBegin(result.graph, 0, 0, ThreadLocalMode);
        try
        {
            work();
        }
        catch
        {
            // Ends the recording in CUDA alone: libtorch's end would throw through us. Its pool stays marked, so that nobody else gets that memory.
            nint unused;
            Members.StreamEndCapture(stream.Handle, &unused);
            throw;
        }
        Members.CaptureEnd(result.graph);
        return result;
    }

    /// <summary>Starts the work on libtorch's current stream; does not wait.</summary>
    public void Replay() => Members.Replay(graph);

    /// <inheritdoc/>
    public void Dispose()
    {
        if (graph is null) return;
        Members.Destroy(graph);
        NativeMemory.AlignedFree(graph);
        graph = null;
    }

    /// <summary>The members, resolved at first use.</summary>
    private static class Members
    {
        private static readonly List<string> missing = [];

        public static readonly delegate* unmanaged<byte*, byte, void> Construct = (delegate* unmanaged<byte*, byte, void>)Export("_ZN2at4cuda9CUDAGraphC1Eb");
        public static readonly delegate* unmanaged<byte*, void> Destroy = (delegate* unmanaged<byte*, void>)Export("_ZN2at4cuda9CUDAGraphD1Ev");
        public static readonly delegate* unmanaged<byte*, ulong, ulong, int, void> CaptureBegin =
            (delegate* unmanaged<byte*, ulong, ulong, int, void>)Export("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
        public static readonly delegate* unmanaged<byte*, void> CaptureEnd = (delegate* unmanaged<byte*, void>)Export("_ZN2at4cuda9CUDAGraph11capture_endEv");
        public static readonly delegate* unmanaged<byte*, void> Replay = (delegate* unmanaged<byte*, void>)Export("_ZN2at4cuda9CUDAGraph6replayEv");
        public static readonly delegate* unmanaged<nint, nint*, int> StreamEndCapture =
            (delegate* unmanaged<nint, nint*, int>)NativeLibrary.GetExport(LibTorch.CudaAbi.Runtime, "cudaStreamEndCapture");

        public static void Require()
        {
            if (missing.Count > 0)
                throw new ConfigException("NATIVE015", $"cuda_graph needs at::cuda::CUDAGraph, and this libtorch lacks {string.Join(", ", missing)}; leave cuda_graph out or use libtorch 2.11.");
        }

        private static nint Export(string name)
        {
            if (NativeLibrary.TryGetExport(LibTorch.CudaAbi.Library, name, out var address)) return address;
            missing.Add(name);
            return 0;
        }
    }
}
