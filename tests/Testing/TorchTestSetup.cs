using Megatron.Compute.Native;
using TorchSharp;

namespace Megatron.Testing;

/// <summary>Loads libtorch before the first tensor of a test process. MEGATRON_LIBTORCH chooses another libtorch, as in the program.</summary>
public static class TorchTestSetup
{
    /// <summary>Loads libtorch; one intra-op thread, so that sums have one order and parallel test classes do not fight for cores.</summary>
    public static LoadedLibTorch EnsureLoaded() => loaded.Value;

    private static readonly Lazy<LoadedLibTorch> loaded = new(() =>
    {
        var folder = Environment.GetEnvironmentVariable("MEGATRON_LIBTORCH");
        var result = LibTorch.Load(new LibTorchOptions { Folder = string.IsNullOrEmpty(folder) ? null : folder });
        torch.set_num_threads(1);
        return result;
    });
}
