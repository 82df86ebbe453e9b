using Megatron.Compute.Native;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>The GPU of GPU tests. They carry the trait Category=gpu and are skipped by name where there is none.</summary>
public static class Gpu
{
    private static readonly int count = CudaDevices.Count(TorchTestSetup.EnsureLoaded());

    /// <summary>Why a GPU test cannot run here; null when it can.</summary>
    public static string? WhyNot => count > 0 ? null : "needs an NVIDIA GPU and a CUDA libtorch (MEGATRON_LIBTORCH)";

    /// <summary>For <c>Assert.SkipWhen</c>: true without a GPU.</summary>
    public static bool IsMissing => WhyNot is not null;

    /// <summary>For <c>Assert.SkipUnless</c>: whether there are so many GPUs.</summary>
    public static bool Has(int gpus) => count >= gpus;

    /// <summary>Why a test for <paramref name="gpus"/> GPUs cannot run where there are fewer.</summary>
    public static string WhyFewerThan(int gpus) => $"needs {gpus} NVIDIA GPUs; {count} are here";

    /// <summary>The first GPU.</summary>
    public static Device Device => new(TorchSharp.DeviceType.CUDA, 0);
}
