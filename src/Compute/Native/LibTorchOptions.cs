namespace Megatron.Compute.Native;

/// <summary>Where libtorch is looked for and how strict its version is taken. Client and Silo fill it; nothing below them reads the environment.</summary>
public sealed record LibTorchOptions
{
    /// <summary>
    /// Folder with <c>libtorch_cpu.so</c>, such as <c>torch/lib</c> of an installed PyTorch (the value of <c>MEGATRON_LIBTORCH</c>).
    /// Null: libtorch beside the program, else the NuGet package that the program was built with.
    /// </summary>
    public string? Folder { get; init; }

    /// <summary>Accept a libtorch whose version was not tested with this build. Its C++ interface may differ and crash the process.</summary>
    public bool AllowUntestedVersion { get; init; }

    /// <summary>
    /// The process may own several GPUs (docs/adr/0012): all kernels of a CUDA library are loaded when the library is, not at their first launch
    /// (<c>CUDA_MODULE_LOADING=EAGER</c>, unless the user has set it), which costs time at the start.
    /// </summary>
    public bool OwnsSeveralGpus { get; init; }

    /// <summary>Folder for the private copy of TorchSharp's shim on systems with an older libstdc++. Null: the user's local application data.</summary>
    public string? CacheFolder { get; init; }
}

/// <summary>What was loaded into this process.</summary>
/// <param name="Folder">Folder of <c>libtorch_cpu.so</c>.</param>
/// <param name="Version">Version that libtorch itself reports.</param>
/// <param name="HasCuda">True when <c>libtorch_cuda.so</c> was loaded; says nothing about a device being present.</param>
/// <param name="ShimPath">The <c>libLibTorchSharp.so</c> in use.</param>
/// <param name="IsShimPatched">True when the shim is a copy that accepts this system's older libstdc++ (docs/adr/0001).</param>
public sealed record LoadedLibTorch(string Folder, Version Version, bool HasCuda, string ShimPath, bool IsShimPatched);
