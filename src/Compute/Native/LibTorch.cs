// Finds libtorch, loads it by absolute path and hands it to TorchSharp. A process has one libtorch: this is the one place with process-wide
// state, because the dynamic loader's state is process-wide too. What it is not: a choice of device, or of anything numeric.

using System.Runtime.InteropServices;
using Megatron.Compute.Configuration;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>
/// The native libraries of this process. Every program and test calls <see cref="Load"/> before its first tensor.
/// </summary>
public static partial class LibTorch
{
    private const string Cpu = "libtorch_cpu.so";
    private const string Cuda = "libtorch_cuda.so";

    /// <summary>Versions (major.minor) whose C++ interface the TorchSharp shim of this build was tried with.</summary>
    public static IReadOnlyList<Version> TestedVersions { get; } = [new(2, 10), new(2, 11)];

    /// <summary>
    /// Turns of the loop in which an OpenMP thread waits before it sleeps. The default of 300,000 holds a core for milliseconds at the end of each
    /// parallel product; when another process or rank needs that core, a step takes 10 to 30 times as long. 2,000 turns are some microseconds.
    /// </summary>
    private const string OpenMpSpinCount = "2000";

    private static readonly Lock gate = new();
    private static LoadedLibTorch? loaded;
    private static StableAbi? abi;
    private static Lazy<CudaAbi>? cudaAbi;

    /// <summary>libtorch's C interface, for operators that TorchSharp does not wrap.</summary>
    /// <exception cref="InvalidOperationException"><see cref="Load"/> was not called.</exception>
    internal static StableAbi Abi => Volatile.Read(ref abi) ?? throw new InvalidOperationException("LibTorch.Load was not called before the first native call.");

    /// <summary>The CUDA part of the interface, resolved at first use: a machine without a GPU never needs it.</summary>
    /// <exception cref="InvalidOperationException">No CUDA libtorch is loaded.</exception>
    internal static CudaAbi CudaAbi => Volatile.Read(ref cudaAbi)?.Value ?? throw new InvalidOperationException("The loaded libtorch has no CUDA.");

    /// <summary>
    /// Loads libtorch and TorchSharp's shim once; later calls return what is loaded. Safe from any thread.
    /// </summary>
    /// <exception cref="ConfigException">NATIVE001 to NATIVE010: one sentence for each way this can fail, with its remedy.</exception>
    public static LoadedLibTorch Load(LibTorchOptions? options = null)
    {
        options ??= new LibTorchOptions();
        lock (gate)
        {
            if (loaded is null) loaded = LoadOnce(options);
            else RequireSameFolder(loaded, options);
            return loaded;
        }
    }

    private static LoadedLibTorch LoadOnce(LibTorchOptions options)
    {
        if (!OperatingSystem.IsLinux() || RuntimeInformation.ProcessArchitecture != Architecture.X64)
        {
            throw new ConfigException("NATIVE001", $"libtorch is supported on linux-x64 only and this is {RuntimeInformation.RuntimeIdentifier}; "
                + "run on a 64-bit Intel or AMD Linux machine.");
        }

        var places = NativeSearch.Default();
        var folder = NativeSearch.FindLibTorch(options.Folder, places);
        var libraries = LibrariesIn(folder);
        SetVariables(options);
        var handles = libraries.ToDictionary(name => name, name => LoadLibrary(Path.Combine(folder, name)));
        var version = StableAbi.ReadVersion(handles[Cpu], folder);
        RequireTestedVersion(version, folder, options.AllowUntestedVersion);
        var standardLibrary = LoadLibrary("libstdc++.so.6");
        var resolvedAbi = StableAbi.Resolve(handles[Cpu], standardLibrary, folder, version);

        var original = NativeSearch.FindShim(folder, places);
        var shim = ShimCopy.NeedsPatch(standardLibrary) ? ShimCopy.Load(original, options.CacheFolder, LoadLibrary)
            : (Path: original, Handle: LoadLibrary(original));
        NativeScalars.TakeOver(shim.Handle, shim.Path);
        HandToTorchSharp(shim.Handle, shim.Path);
        Volatile.Write(ref abi, resolvedAbi);
        if (handles.TryGetValue(Cuda, out var cuda)) Volatile.Write(ref cudaAbi, new Lazy<CudaAbi>(() => new CudaAbi(cuda, folder, version)));
        return new LoadedLibTorch(folder, version, libraries.Contains(Cuda), shim.Path, shim.Path != original);
    }

    /// <summary>Variables that native libraries read once: libgomp when it is loaded, the CUDA driver when it is initialized, NCCL at its first communicator.</summary>
    internal static void SetVariables(LibTorchOptions options)
    {
        SetUnlessGiven("GOMP_SPINCOUNT", OpenMpSpinCount);
        if (!options.OwnsSeveralGpus) return;
        SetUnlessGiven("CUDA_MODULE_LOADING", "EAGER");
        // NCCL hands the tensors of one GPU to the others of the process, and those cannot reach memory that libtorch maps piece by piece.
        foreach (var name in (string[])["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
            if (Marshal.PtrToStringUTF8(GetEnv(name))?.Contains("expandable_segments:True", StringComparison.OrdinalIgnoreCase) ?? false) SetUnlessGiven("NCCL_P2P_DIRECT_DISABLE", "1");
    }

    /// <summary>File names to load, dependencies first, so that no later load has to search for one.</summary>
    private static List<string> LibrariesIn(string folder)
    {
        var names = new List<string>();
        AddIfPresent("libtorch_global_deps.so");
        names.AddRange(Directory.EnumerateFiles(folder, "libgomp*.so*").Select(file => Path.GetFileName(file)).Order(StringComparer.Ordinal));
        names.Add("libc10.so");
        names.Add(Cpu);
        if (File.Exists(Path.Combine(folder, Cuda)))
        {
            AddIfPresent("libc10_cuda.so");
            names.Add(Cuda);
        }
        names.Add("libtorch.so");
        return names;

        void AddIfPresent(string name)
        {
            if (File.Exists(Path.Combine(folder, name))) names.Add(name);
        }
    }

    /// <summary>
    /// Sets a variable of the C library's environment, which native libraries read; what the user has set stays. .NET's own copy of the environment
    /// does not reach them.
    /// </summary>
    private static void SetUnlessGiven(string name, string value) => SetEnv(name, value, overwrite: 0);

    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetEnv(string name, string value, int overwrite);

    [LibraryImport("libc", EntryPoint = "getenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial nint GetEnv(string name);

    private static nint LoadLibrary(string path)
    {
        try
        {
            return NativeLibrary.Load(path);
        }
        catch (Exception exception) when (exception is DllNotFoundException or BadImageFormatException)
        {
            // The first line is general advice; the dynamic loader's own words follow it.
            var reason = exception.Message.Split('\n', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries).Skip(1).FirstOrDefault() ?? exception.Message;
            throw new ConfigException("NATIVE003", $"{path} could not be loaded ({reason}); reinstall that libtorch, or put the missing library's folder on LD_LIBRARY_PATH "
                + "(for PyTorch: torch/lib and nvidia/*/lib of the same Python environment).");
        }
    }

    private static void RequireTestedVersion(Version version, string folder, bool allowUntested)
    {
        if (allowUntested || TestedVersions.Any(tested => tested.Major == version.Major && tested.Minor == version.Minor)) return;
        throw new ConfigException("NATIVE004", $"libtorch in {folder} is version {version}, tested are {string.Join(" and ", TestedVersions)}; "
            + "choose one of those, or force it with AllowUntestedVersion and expect crashes.");
    }

    private static void RequireSameFolder(LoadedLibTorch current, LibTorchOptions options)
    {
        if (options.Folder is null || Path.GetFullPath(options.Folder) == current.Folder) return;
        throw new ConfigException("NATIVE008", $"libtorch of {current.Folder} is already loaded in this process and {options.Folder} was asked for; "
            + "a process has one libtorch: start another process.");
    }

    private static void HandToTorchSharp(nint shim, string shimPath)
    {
        var assembly = typeof(TorchSharp.torch).Assembly;
        NativeLibrary.SetDllImportResolver(assembly, (name, _, _) => name == "LibTorchSharp" ? shim : 0);
        // TorchSharp's own search runs once more, by bare names: the dynamic loader answers with what is loaded, by SONAME.
        try
        {
            InitializeDeviceType(TorchSharp.DeviceType.CPU);
            using var probe = zeros(1, requires_grad: false);
        }
        catch (Exception exception) when (exception is not ConfigException)
        {
            throw new ConfigException("NATIVE009", $"TorchSharp did not start with {shimPath}: {exception.GetBaseException().Message} "
                + "Restore the packages again (dotnet restore --force), or choose a tested libtorch.");
        }
    }
}
