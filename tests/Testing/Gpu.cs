using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>The GPU of GPU tests. They carry the trait Category=gpu and are skipped by name where there is none.</summary>
public static class Gpu
{
    /// <summary>Why a GPU test cannot run here; null when it can.</summary>
    public static string? WhyNot { get; } = CudaDevices.Count(TorchTestSetup.EnsureLoaded()) > 0 ? null : "needs an NVIDIA GPU and a CUDA libtorch (MEGATRON_LIBTORCH)";

    /// <summary>For <c>Assert.SkipWhen</c>: true without a GPU.</summary>
    public static bool IsMissing => WhyNot is not null;

    /// <summary>The first GPU.</summary>
    public static Device Device => new(TorchSharp.DeviceType.CUDA, 0);
}
