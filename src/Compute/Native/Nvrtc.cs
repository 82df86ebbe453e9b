using System.Runtime.InteropServices;
using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>NVIDIA's run-time compiler: CUDA C++ text to machine code for one architecture. No compiler is installed on the user's machine.</summary>
internal static unsafe class Nvrtc
{
    /// <summary>Compiles <paramref name="source"/> for compute capability <paramref name="architecture"/> (90 = Hopper).</summary>
    /// <param name="name">File name shown in messages.</param>
    /// <exception cref="InvalidOperationException">The source does not compile: the compiler's log.</exception>
    /// <exception cref="ConfigException">NATIVE012: the compiler library is not there.</exception>
    public static byte[] Compile(string source, string name, int architecture, IReadOnlyList<string> defines)
    {
        var library = Find();
        var create = (delegate* unmanaged<nint*, byte*, byte*, int, byte**, byte**, int>)NativeLibrary.GetExport(library, "nvrtcCreateProgram");
        var compile = (delegate* unmanaged<nint, int, byte**, int>)NativeLibrary.GetExport(library, "nvrtcCompileProgram");
        var destroy = (delegate* unmanaged<nint*, int>)NativeLibrary.GetExport(library, "nvrtcDestroyProgram");
        nint program;
        fixed (byte* text = Encoding.UTF8.GetBytes(source + '\0'), file = Encoding.UTF8.GetBytes(name + '\0'))
            Check(create(&program, text, file, 0, null, null), "nvrtcCreateProgram");
        try
        {
            string[] options = [$"--gpu-architecture=sm_{architecture}", "--std=c++17", "--fmad=true", .. defines.Select(define => $"-D{define}")];
            var pointers = stackalloc byte*[options.Length];
            for (var i = 0; i < options.Length; i++) pointers[i] = (byte*)Marshal.StringToCoTaskMemUTF8(options[i]);
            var status = compile(program, options.Length, pointers);
            for (var i = 0; i < options.Length; i++) Marshal.FreeCoTaskMem((nint)pointers[i]);
            if (status != 0) throw new InvalidOperationException($"{name} does not compile for sm_{architecture}: {Encoding.UTF8.GetString(Read(library, program, "nvrtcGetProgramLog"))}");
            return Read(library, program, "nvrtcGetCUBIN");
        }
        finally
        {
            destroy(&program);
        }
    }

    private static byte[] Read(nint library, nint program, string getter)
    {
        var size = (delegate* unmanaged<nint, nuint*, int>)NativeLibrary.GetExport(library, getter + "Size");
        var get = (delegate* unmanaged<nint, byte*, int>)NativeLibrary.GetExport(library, getter);
        nuint length;
        Check(size(program, &length), getter + "Size");
        var bytes = new byte[length];
        fixed (byte* target = bytes) Check(get(program, target), getter);
        return bytes;
    }

    /// <summary>The compiler of the CUDA major version that libtorch brought; where it lies differs between pip and NuGet packages.</summary>
    private static nint Find()
    {
        foreach (var major in (int[])[13, 12])
        {
            if (!File.ReadLines("/proc/self/maps").Any(line => line.Contains($"libcudart.so.{major}", StringComparison.Ordinal))) continue;
            if (NativeLibrary.TryLoad($"libnvrtc.so.{major}", out var handle)) return handle;
            foreach (var folder in Folders())
                foreach (var file in Directory.EnumerateFiles(folder, $"libnvrtc*.so.{major}"))
                    if (NativeLibrary.TryLoad(file, out handle)) return handle;
        }
        throw new ConfigException("NATIVE012", "libnvrtc, the CUDA run-time compiler, was not found beside libtorch; install it (pip: nvidia-cuda-nvrtc) or put its folder on LD_LIBRARY_PATH.");
    }

    private static IEnumerable<string> Folders() => File.ReadLines("/proc/self/maps")
        .Where(line => line.Contains("/libcudart", StringComparison.Ordinal) || line.Contains("/libtorch_cuda.so", StringComparison.Ordinal))
        .Select(line => Path.GetDirectoryName(line[line.IndexOf('/', StringComparison.Ordinal)..]) ?? "/").Distinct(StringComparer.Ordinal).Where(Directory.Exists);

    private static void Check(int status, string function)
    {
        if (status != 0) throw new InvalidOperationException($"{function} failed with status {status}.");
    }
}
