using Megatron.Compute.Configuration;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>GPUs as this process sees them.</summary>
public static unsafe class CudaDevices
{
    private const long SmallBlockBytes = 1 << 20; // libtorch cuts tensors up to this size from segments of their own
    private const int NumSmallBlocks = 32;

    /// <summary>Number of usable GPUs; 0 without a CUDA libtorch, driver or device. CUDA_VISIBLE_DEVICES is honoured by the driver.</summary>
    public static int Count(LoadedLibTorch libTorch)
    {
        if (!libTorch.HasCuda) return 0;
        InitializeDeviceType(DeviceType.CUDA);
        return cuda.is_available() ? cuda.device_count() : 0;
    }

    /// <summary>The device of a rank, made the calling thread's current one.</summary>
    /// <param name="kind"><c>auto</c> (GPUs when there are any), <c>cpu</c> or <c>cuda</c>.</param>
    /// <param name="localRank">Index of the rank on its node.</param>
    /// <exception cref="ConfigException">GPU001: <c>cuda</c> was asked for and is not there. GPU002: fewer GPUs than ranks.</exception>
    public static Device Choose(string kind, int localRank, LoadedLibTorch libTorch)
    {
        var count = kind == "cpu" ? 0 : Count(libTorch);
        if (kind == "cuda" && count == 0)
            throw new ConfigException("GPU001", libTorch.HasCuda
                ? "device = cuda, but no NVIDIA GPU is usable here; check nvidia-smi and CUDA_VISIBLE_DEVICES, or give --device cpu."
                : $"device = cuda, but libtorch in {libTorch.Folder} has no CUDA; set MEGATRON_LIBTORCH to torch/lib of a CUDA PyTorch, or give --device cpu.");
        if (count == 0) return CPU;
        if (localRank >= count)
            throw new ConfigException("GPU002", $"Rank {localRank} of this node has no GPU of its own: {count} are visible; start fewer ranks or make more GPUs visible.");
        CudaStream.MakeCurrent(localRank); // kernels of ours and streams of libtorch are those of the thread's device
        return new Device(DeviceType.CUDA, localRank);
    }

    /// <summary>Does nothing on a CPU, where float8 is only rounding.</summary>
    /// <exception cref="ConfigException">GPU005: the GPU is older than Ada and Hopper.</exception>
    public static void RequireFloat8(Device device)
    {
        if (device.type != DeviceType.CUDA) return;
        var architecture = CudaKernels.Architecture(device.index);
        if (architecture >= 89) return;
        throw new ConfigException("GPU005", $"fp8_format needs a GPU of compute capability 8.9 or later, and {CudaKernels.DeviceName(device.index)} has {architecture / 10}.{architecture % 10}; leave fp8_format out.");
    }

    /// <summary>Waits for all work on the device; does nothing on a CPU.</summary>
    public static void Synchronize(Device device)
    {
        if (device.type == DeviceType.CUDA) StableAbi.Check(LibTorch.CudaAbi.DeviceSynchronize(), "cudaDeviceSynchronize");
    }

    /// <summary>
    /// Adds to libtorch's cache, from which later tensors are cut without a call of the driver: a quarter of what is taken of the current GPU, at most half of
    /// what is free.
    /// </summary>
    public static void Reserve(Device device)
    {
        var (used, total) = Memory();
        using var scope = NewDisposeScope();
        _ = empty(Math.Min(used / 4, (total - used) / 2), dtype: ScalarType.Byte, device: device);
        for (var i = 0; i < NumSmallBlocks; i++) _ = empty(SmallBlockBytes, dtype: ScalarType.Byte, device: device);
    }

    /// <summary>Bytes taken of the current GPU, by all processes: what its allocators hold, which never shrinks during a run.</summary>
    public static long UsedBytes() => Memory().Used;

    /// <summary>Bytes taken of the current GPU, by all processes, and its size.</summary>
    public static (long Used, long Total) Memory()
    {
        nuint free, total;
        StableAbi.Check(LibTorch.CudaAbi.MemGetInfo(&free, &total), "cudaMemGetInfo");
        return ((long)(total - free), (long)total);
    }
}
