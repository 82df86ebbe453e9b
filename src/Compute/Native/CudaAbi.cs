// The CUDA part of libtorch's stable C ABI (torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h and torch/csrc/stable/c/shim.h), the CUDA
// runtime, cuBLAS and cuBLASLt: the copies that libtorch has mapped.

using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>CUDA functions that this program calls, resolved once; a missing one is named.</summary>
internal sealed unsafe class CudaAbi
{
    /// <summary>Forward of cuDNN attention: q, k, v, bias*, computeLogSumExp, dropout, isCausal, debugMask, scale*, nine results.</summary>
    public readonly delegate* unmanaged<nint, nint, nint, nint*, int, double, int, int, double*, nint*, nint*, nint*, nint*, long*, long*, nint*, nint*, nint*, int>
        CudnnAttentionForward;

    /// <summary>Backward: gradOut, q, k, v, out, logSumExp, philox seed, offset, bias, cumSeqQ, cumSeqK, maxQ, maxK, dropout, isCausal, scale*, three results.</summary>
    public readonly delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, nint, nint, nint, nint, long, long, double, int, double*, nint*, nint*, nint*, int>
        CudnnAttentionBackward;

    /// <summary>int torch_get_current_cuda_blas_handle(out handle): the cuBLAS handle of this thread, set to the current stream.</summary>
    public readonly delegate* unmanaged<nint*, int> CurrentBlasHandle;

    /// <summary>cublasStatus_t cublasGemmEx(handle, opA, opB, m, n, k, alpha, A, typeA, lda, B, typeB, ldb, beta, C, typeC, ldc, compute, algorithm).</summary>
    public readonly delegate* unmanaged<nint, int, int, int, int, int, float*, nint, int, int, nint, int, int, float*, nint, int, int, int, int, int> GemmEx;

    /// <summary>int aoti_torch_get_current_cuda_stream(device, out stream).</summary>
    public readonly delegate* unmanaged<int, nint*, int> GetCurrentStream;

    /// <summary>cudaError_t cudaMemGetInfo(out free, out total) of the current device.</summary>
    public readonly delegate* unmanaged<nuint*, nuint*, int> MemGetInfo;

    /// <summary>cudaError_t cudaSetDevice(device), for the calling thread.</summary>
    public readonly delegate* unmanaged<int, int> SetDevice;

    /// <summary>cudaError_t cudaStreamCreateWithFlags(out stream, flags).</summary>
    public readonly delegate* unmanaged<nint*, uint, int> StreamCreateWithFlags;

    /// <summary>cudaError_t cudaStreamDestroy(stream).</summary>
    public readonly delegate* unmanaged<nint, int> StreamDestroy;

    /// <summary>cudaError_t cudaStreamWaitEvent(stream, event, flags).</summary>
    public readonly delegate* unmanaged<nint, nint, uint, int> StreamWaitEvent;

    /// <summary>cudaError_t cudaEventCreateWithFlags(out event, flags).</summary>
    public readonly delegate* unmanaged<nint*, uint, int> EventCreateWithFlags;

    /// <summary>cudaError_t cudaEventRecord(event, stream).</summary>
    public readonly delegate* unmanaged<nint, nint, int> EventRecord;

    /// <summary>cudaError_t cudaEventQuery(event): 0 done, 600 not yet.</summary>
    public readonly delegate* unmanaged<nint, int> EventQuery;

    /// <summary>cudaError_t cudaEventSynchronize(event).</summary>
    public readonly delegate* unmanaged<nint, int> EventSynchronize;

    /// <summary>cudaError_t cudaEventElapsedTime(out milliseconds, start, end).</summary>
    public readonly delegate* unmanaged<float*, nint, nint, int> EventElapsedTime;

    /// <summary>cudaError_t cudaStreamIsCapturing(stream, out status): 0 when the stream is not being captured.</summary>
    public readonly delegate* unmanaged<nint, int*, int> StreamIsCapturing;

    /// <summary>cudaError_t cudaMalloc(out address, bytes).</summary>
    public readonly delegate* unmanaged<nint*, nuint, int> Malloc;

    /// <summary>cudaError_t cudaGetLastError(): reads and clears, so that libtorch does not take an error of ours for its own.</summary>
    public readonly delegate* unmanaged<int> GetLastError;

    /// <summary>cudaError_t cudaEventDestroy(event).</summary>
    public readonly delegate* unmanaged<nint, int> EventDestroy;

    /// <summary>int aoti_torch_create_cuda_stream_guard(stream, device, out guard): libtorch's current stream of this thread until the guard is deleted.</summary>
    public readonly delegate* unmanaged<nint, int, nint*, int> CreateStreamGuard;

    /// <summary>int aoti_torch_delete_cuda_stream_guard(guard).</summary>
    public readonly delegate* unmanaged<nint, int> DeleteStreamGuard;

    /// <summary>libtorch_cuda.so.</summary>
    public readonly nint Library;

    /// <summary>The CUDA runtime that libtorch has mapped.</summary>
    public readonly nint Runtime;

    /// <summary>const char* cudaGetErrorString(error).</summary>
    public readonly delegate* unmanaged<int, byte*> GetErrorString;

    /// <summary>cudaError_t cudaDeviceSynchronize().</summary>
    public readonly delegate* unmanaged<int> DeviceSynchronize;

    /// <summary>cuBLASLt.</summary>
    public CublasLt Lt { get; }

    /// <param name="cuda">Handle of libtorch_cuda.so.</param>
    /// <exception cref="ConfigException">NATIVE011: names each function that is missing.</exception>
    public CudaAbi(nint cuda, string folder, Version version)
    {
        List<string> missing = [];
        var (blas, runtime) = (LoadMapped("libcublas.so", missing), LoadMapped("libcudart.so", missing));
        (Library, Runtime) = (cuda, runtime);
        Lt = new CublasLt(LoadMapped("libcublasLt.so", missing), missing);
        CreateStreamGuard = (delegate* unmanaged<nint, int, nint*, int>)Export(cuda, "aoti_torch_create_cuda_stream_guard", missing);
        DeleteStreamGuard = (delegate* unmanaged<nint, int>)Export(cuda, "aoti_torch_delete_cuda_stream_guard", missing);
        CudnnAttentionForward = (delegate* unmanaged<nint, nint, nint, nint*, int, double, int, int, double*, nint*, nint*, nint*, nint*, long*, long*, nint*, nint*, nint*, int>)
            Export(cuda, "aoti_torch_cuda__scaled_dot_product_cudnn_attention", missing);
        CudnnAttentionBackward = (delegate* unmanaged<nint, nint, nint, nint, nint, nint, nint, nint, nint, nint, nint, long, long, double, int, double*, nint*, nint*, nint*, int>)
            Export(cuda, "aoti_torch_cuda__scaled_dot_product_cudnn_attention_backward", missing);
        CurrentBlasHandle = (delegate* unmanaged<nint*, int>)Export(cuda, "torch_get_current_cuda_blas_handle", missing);
        GemmEx = (delegate* unmanaged<nint, int, int, int, int, int, float*, nint, int, int, nint, int, int, float*, nint, int, int, int, int, int>)Export(blas, "cublasGemmEx", missing);
        GetCurrentStream = (delegate* unmanaged<int, nint*, int>)Export(cuda, "aoti_torch_get_current_cuda_stream", missing);
        MemGetInfo = (delegate* unmanaged<nuint*, nuint*, int>)Export(runtime, "cudaMemGetInfo", missing);
        SetDevice = (delegate* unmanaged<int, int>)Export(runtime, "cudaSetDevice", missing);
        StreamCreateWithFlags = (delegate* unmanaged<nint*, uint, int>)Export(runtime, "cudaStreamCreateWithFlags", missing);
        StreamDestroy = (delegate* unmanaged<nint, int>)Export(runtime, "cudaStreamDestroy", missing);
        StreamWaitEvent = (delegate* unmanaged<nint, nint, uint, int>)Export(runtime, "cudaStreamWaitEvent", missing);
        EventCreateWithFlags = (delegate* unmanaged<nint*, uint, int>)Export(runtime, "cudaEventCreateWithFlags", missing);
        EventRecord = (delegate* unmanaged<nint, nint, int>)Export(runtime, "cudaEventRecord", missing);
        EventQuery = (delegate* unmanaged<nint, int>)Export(runtime, "cudaEventQuery", missing);
        EventSynchronize = (delegate* unmanaged<nint, int>)Export(runtime, "cudaEventSynchronize", missing);
        EventElapsedTime = (delegate* unmanaged<float*, nint, nint, int>)Export(runtime, "cudaEventElapsedTime", missing);
        StreamIsCapturing = (delegate* unmanaged<nint, int*, int>)Export(runtime, "cudaStreamIsCapturing", missing);
        Malloc = (delegate* unmanaged<nint*, nuint, int>)Export(runtime, "cudaMalloc", missing);
        GetLastError = (delegate* unmanaged<int>)Export(runtime, "cudaGetLastError", missing);
        EventDestroy = (delegate* unmanaged<nint, int>)Export(runtime, "cudaEventDestroy", missing);
        GetErrorString = (delegate* unmanaged<int, byte*>)Export(runtime, "cudaGetErrorString", missing);
        DeviceSynchronize = (delegate* unmanaged<int>)Export(runtime, "cudaDeviceSynchronize", missing);
        if (missing.Count > 0)
        {
            throw new ConfigException("NATIVE011", $"libtorch {version} in {folder} lacks {string.Join(", ", missing)} for CUDA; "
                + $"use one of the tested versions {string.Join(" and ", LibTorch.TestedVersions)}, or --device cpu.");
        }
    }

    /// <summary>libtorch's current stream on a device: our kernels run in order with its own.</summary>
    public nint CurrentStream(int device)
    {
        nint stream;
        StableAbi.Check(GetCurrentStream(device, &stream), "aoti_torch_get_current_cuda_stream");
        return stream;
    }

    /// <summary>A handle of the very copy that libtorch has mapped: a second copy of cuBLAS or the runtime would have a state of its own.</summary>
    private static nint LoadMapped(string prefix, List<string> missing)
    {
        foreach (var line in File.ReadLines("/proc/self/maps"))
        {
            var start = line.IndexOf('/', StringComparison.Ordinal);
            if (start >= 0 && Path.GetFileName(line[start..]).StartsWith(prefix, StringComparison.Ordinal)) return NativeLibrary.Load(line[start..]);
        }
        missing.Add(prefix);
        return 0;
    }

    internal static nint Export(nint library, string name, List<string> missing)
    {
        if (library != 0 && NativeLibrary.TryGetExport(library, name, out var address)) return address;
        missing.Add(name);
        return 0;
    }
}
