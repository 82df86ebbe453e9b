using System.Reflection;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>Where native files may lie, in the order they are tried.</summary>
/// <param name="Program">Folders of the program itself: a publish puts libtorch there.</param>
/// <param name="LibTorchPackage">Folder of the libtorch NuGet package of the build, or null when built with TorchBackend=none.</param>
/// <param name="TorchSharpPackage">Folder of TorchSharp's shim in its NuGet package.</param>
internal sealed record NativePlaces(IReadOnlyList<string> Program, string? LibTorchPackage, string? TorchSharpPackage);

/// <summary>Finds libtorch and TorchSharp's shim. Reads the file system only.</summary>
internal static class NativeSearch
{
    /// <summary>The places of this process.</summary>
    public static NativePlaces Default()
    {
        var metadata = typeof(NativeSearch).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().ToDictionary(entry => entry.Key, entry => entry.Value);
        var program = AppContext.BaseDirectory;
        return new NativePlaces([Path.TrimEndingDirectorySeparator(program), Path.Combine(program, "runtimes", "linux-x64", "native")],
            metadata.GetValueOrDefault("LibTorchCpu"), metadata.GetValueOrDefault("TorchSharpNative"));
    }

    /// <summary>Folder of <c>libtorch_cpu.so</c>: the asked one or nothing else; else beside the program; else the NuGet package.</summary>
    public static string FindLibTorch(string? asked, NativePlaces places)
    {
        const string file = "libtorch_cpu.so";
        if (asked is not null)
        {
            return File.Exists(Path.Combine(asked, file)) ? Path.GetFullPath(asked) : throw new ConfigException("NATIVE002",
                $"there is no {file} in {asked}; set MEGATRON_LIBTORCH to the torch/lib folder of an installed PyTorch, or unset it to use the built-in libtorch.");
        }

        List<string> folders = [.. places.Program];
        if (places.LibTorchPackage is { } package) folders.Add(package);
        return folders.Find(folder => File.Exists(Path.Combine(folder, file))) ?? throw new ConfigException("NATIVE002",
            $"{file} was not found in {string.Join(", ", folders)}; run dotnet restore, publish with -p:TorchBackend=cpu, "
            + "or set MEGATRON_LIBTORCH to the torch/lib folder of an installed PyTorch.");
    }

    /// <summary>TorchSharp's <c>libLibTorchSharp.so</c>: beside the program, else in its NuGet package, else beside libtorch.</summary>
    public static string FindShim(string libTorchFolder, NativePlaces places)
    {
        const string file = "libLibTorchSharp.so";
        List<string> folders = [.. places.Program];
        if (places.TorchSharpPackage is { } package) folders.Add(package);
        folders.Add(libTorchFolder);
        var paths = folders.ConvertAll(folder => Path.Combine(folder, file));
        return paths.Find(File.Exists) ?? throw new ConfigException("NATIVE006",
            $"TorchSharp's native file {file} was not found in {string.Join(", ", folders)}; run dotnet restore, or publish the program again.");
    }
}
