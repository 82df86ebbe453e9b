using System.IO.Hashing;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using static TorchSharp.torch;

namespace Megatron.Compute.Native;

/// <summary>
/// Our CUDA kernels: embedded .cu files, compiled at first use for the device's architecture and kept on disk under the hash of source,
/// options and architecture. Modules belong to a device's context, which is process-wide state of the driver; calls come from rank threads.
/// </summary>
public sealed unsafe class CudaKernels
{
    private static readonly Lock gate = new();
    private static readonly Dictionary<(int Device, string File, string Define), CudaKernels> modules = [];

    /// <summary>The kernels of <c>--fp8_format</c>.</summary>
    internal const string Float8File = "float8.cu";

    private const string Folder = ".Kernels."; // in the names of the embedded files
    private const uint SharedBytesUnasked = 48 << 10; // more must be asked for

    private readonly Dictionary<string, nint> functions = new(StringComparer.Ordinal);
    private readonly nint module;
    private readonly int device;

    /// <summary>Where compiled kernels and other things that a process works out once for a machine are kept.</summary>
    internal static string CacheFolder =>
        Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData, Environment.SpecialFolderOption.Create), "megatron", "kernels");

    private CudaKernels(int device, string file, string define)
    {
        this.device = device;
        var architecture = Architecture(device);
        var source = Embedded("common.cuh") + Embedded(file);
        var binary = LoadOrCompile(source, file, define, architecture);
        nint loaded;
        fixed (byte* image = binary) Check(Driver.ModuleLoadData(&loaded, image), $"cuModuleLoadData of {file}");
        module = loaded;
    }

    /// <summary>The compiled form of an embedded file.</summary>
    /// <param name="file">Such as <c>rms_norm.cu</c>.</param>
    /// <param name="define">A preprocessor definition, e.g. <c>ELEMENT=0</c>.</param>
    public static CudaKernels Of(string file, string define)
    {
        int device;
        Check(Driver.CtxGetDevice(&device), "cuCtxGetDevice");
        lock (gate)
        {
            if (!modules.TryGetValue((device, file, define), out var kernels)) modules[(device, file, define)] = kernels = new CudaKernels(device, file, define);
            return kernels;
        }
    }

    /// <summary>Compiles and loads the kernel files for the current device, for tensors of <paramref name="dtype"/> and of fp32.</summary>
    /// <param name="hasFloat8">Those for float8 too, which older GPUs do not take.</param>
    public static void LoadAll(ScalarType dtype, bool hasFloat8)
    {
        foreach (var file in Files().Where(file => hasFloat8 || file != Float8File))
            foreach (var define in (HashSet<string>)[KernelElement.Define(dtype), KernelElement.Define(ScalarType.Float32)]) Of(file, define);
    }

    /// <summary>True when the driver loads whole modules; false when it loads each kernel at its first launch.</summary>
    internal static bool AreModulesEager()
    {
        int mode;
        Check(Driver.ModuleGetLoadingMode(&mode), "cuModuleGetLoadingMode");
        return mode == 1; // CU_MODULE_EAGER_LOADING
    }

    /// <summary>Names of the embedded kernel files.</summary>
    private static IEnumerable<string> Files() => Assembly.GetExecutingAssembly().GetManifestResourceNames()
        .Where(name => name.EndsWith(".cu", StringComparison.Ordinal)).Select(name => name[(name.IndexOf(Folder, StringComparison.Ordinal) + Folder.Length)..]);

    /// <summary>Bytes of shared memory that a block may have on this device.</summary>
    public int MaxSharedBytes => Attribute(device, 97); // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN

    /// <summary>Launches a kernel on the current stream of the device the module was loaded for.</summary>
    /// <param name="name">Its <c>extern "C"</c> name.</param>
    /// <param name="arguments">Values as 64-bit words: pointers, integers (declared <c>long long</c>), and floats by <see cref="Float"/> (declared <c>double</c>).</param>
    public void Launch(string name, uint gridX, uint gridY, uint threads, uint sharedBytes, params ReadOnlySpan<long> arguments)
    {
        var function = Function(name);
        if (sharedBytes > SharedBytesUnasked) Check(Driver.FuncSetAttribute(function, 8, (int)sharedBytes), name); // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        var values = stackalloc long[arguments.Length];
        var pointers = stackalloc void*[arguments.Length];
        for (var i = 0; i < arguments.Length; i++)
        {
            values[i] = arguments[i];
            pointers[i] = values + i;
        }
        Check(Driver.LaunchKernel(function, gridX, gridY, 1, threads, 1, 1, sharedBytes, LibTorch.CudaAbi.CurrentStream(device), pointers, null), name);
    }

    /// <summary>A floating-point argument: kernels declare it <c>double</c>.</summary>
    public static long Float(double value) => BitConverter.DoubleToInt64Bits(value);

    private nint Function(string name)
    {
        lock (gate)
        {
            if (functions.TryGetValue(name, out var function)) return function;
            fixed (byte* text = Encoding.ASCII.GetBytes(name + '\0')) Check(Driver.ModuleGetFunction(&function, module, text), name);
            functions[name] = function;
            return function;
        }
    }

    private static byte[] LoadOrCompile(string source, string file, string define, int architecture)
    {
        var key = Convert.ToHexStringLower(XxHash128.Hash(Encoding.UTF8.GetBytes($"{architecture}|{define}|{source}")));
        var path = Path.Combine(CacheFolder, key + ".cubin");
        if (File.Exists(path)) return File.ReadAllBytes(path);
        var binary = Nvrtc.Compile(source, file, architecture, [define]);
        try
        {
            Directory.CreateDirectory(Path.GetDirectoryName(path) ?? "/");
            var temporary = $"{path}.{Environment.ProcessId}";
            File.WriteAllBytes(temporary, binary);
            File.Move(temporary, path, overwrite: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // Without a cache the next start compiles again, some 80 ms a file.
        }
        return binary;
    }

    private static string Embedded(string file)
    {
        var assembly = Assembly.GetExecutingAssembly();
        var name = assembly.GetManifestResourceNames().Single(candidate => candidate.EndsWith(Folder + file, StringComparison.Ordinal));
        using var stream = assembly.GetManifestResourceStream(name) ?? throw new InvalidOperationException($"{file} is not embedded.");
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd();
    }

    /// <summary>What CUDA calls the device: "NVIDIA H200".</summary>
    internal static string DeviceName(int device)
    {
        const int maxLength = 256;
        var name = stackalloc byte[maxLength];
        Check(Driver.DeviceGetName(name, maxLength, device), "cuDeviceGetName");
        return Marshal.PtrToStringUTF8((nint)name) ?? "";
    }

    /// <summary>Compute capability times ten: 90 for Hopper.</summary>
    internal static int Architecture(int device) => 10 * Attribute(device, 75) + Attribute(device, 76); // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR

    private static int Attribute(int device, int attribute)
    {
        int value;
        Check(Driver.DeviceGetAttribute(&value, attribute, device), "cuDeviceGetAttribute");
        return value;
    }

    private static void Check(int status, string what)
    {
        if (status != 0) throw new InvalidOperationException($"{what}: the CUDA driver reported error {status}.");
    }

    /// <summary>The driver API; its library comes with the driver itself.</summary>
    private static class Driver
    {
        private static readonly nint library = NativeLibrary.Load("libcuda.so.1");

        public static readonly delegate* unmanaged<nint*, void*, int> ModuleLoadData = (delegate* unmanaged<nint*, void*, int>)Export("cuModuleLoadData");
        public static readonly delegate* unmanaged<int*, int> ModuleGetLoadingMode = (delegate* unmanaged<int*, int>)Export("cuModuleGetLoadingMode");
        public static readonly delegate* unmanaged<nint*, nint, byte*, int> ModuleGetFunction = (delegate* unmanaged<nint*, nint, byte*, int>)Export("cuModuleGetFunction");
        public static readonly delegate* unmanaged<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int> LaunchKernel =
            (delegate* unmanaged<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int>)Export("cuLaunchKernel");
        public static readonly delegate* unmanaged<nint, int, int, int> FuncSetAttribute = (delegate* unmanaged<nint, int, int, int>)Export("cuFuncSetAttribute");
        public static readonly delegate* unmanaged<byte*, int, int, int> DeviceGetName = (delegate* unmanaged<byte*, int, int, int>)Export("cuDeviceGetName");
        public static readonly delegate* unmanaged<int*, int> CtxGetDevice = (delegate* unmanaged<int*, int>)Export("cuCtxGetDevice");
        public static readonly delegate* unmanaged<int*, int, int, int> DeviceGetAttribute = (delegate* unmanaged<int*, int, int, int>)Export("cuDeviceGetAttribute");

        private static nint Export(string name) => NativeLibrary.GetExport(library, name);
    }
}
