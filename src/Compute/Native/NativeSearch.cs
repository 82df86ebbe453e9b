using System.Reflection;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>Where native files may lie, in the order they are tried.</summary>
/// <param name="Published">The program's own folder <c>libtorch</c>: a publish with TorchBackend=cpu fills it.</param>
/// <param name="Probed">Folders that .NET itself searches by name: the packages of TorchBackend=cuda publish there.</param>
/// <param name="LibTorchPackage">Folder of the libtorch NuGet package of the build, or null when built with TorchBackend=none.</param>
/// <param name="TorchSharpPackage">Folder of TorchSharp's shim in its NuGet package.</param>
internal sealed record NativePlaces(string Published, IReadOnlyList<string> Probed, string? LibTorchPackage, string? TorchSharpPackage)
{
    /// <summary>Every folder of the program itself.</summary>
    public IReadOnlyList<string> Program => [Published, .. Probed];
}

/// <summary>Finds libtorch and TorchSharp's shim. Reads the file system only.</summary>
internal static class NativeSearch
{
    private const string Library = "libtorch_cpu.so";

    /// <summary>The places of this process.</summary>
    public static NativePlaces Default()
    {
        var metadata = typeof(NativeSearch).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().ToDictionary(entry => entry.Key, entry => entry.Value);
        var program = AppContext.BaseDirectory;
        return new NativePlaces(Path.Combine(program, "libtorch"),
            [Path.TrimEndingDirectorySeparator(program), Path.Combine(program, "runtimes", "linux-x64", "native")],
            metadata.GetValueOrDefault("LibTorchCpu"), metadata.GetValueOrDefault("TorchSharpNative"));
    }

    /// <summary>Folder of <c>libtorch_cpu.so</c>: the asked one or nothing else; else beside the program; else the NuGet package.</summary>
    public static string FindLibTorch(string? asked, NativePlaces places)
    {
        if (asked is not null) return FindAsked(Path.GetFullPath(asked), places);

        List<string> folders = [.. places.Program];
        if (places.LibTorchPackage is { } package) folders.Add(package);
        return folders.Find(folder => File.Exists(Path.Combine(folder, Library))) ?? throw new ConfigException("NATIVE002",
            $"{Library} was not found in {string.Join(", ", folders)}; run dotnet restore, publish with -p:TorchBackend=cpu, "
            + "or set MEGATRON_LIBTORCH to the torch/lib folder of an installed PyTorch.");
    }

    private static string FindAsked(string asked, NativePlaces places)
    {
        if (!File.Exists(Path.Combine(asked, Library))) throw new ConfigException("NATIVE002",
            $"there is no {Library} in {asked}; set MEGATRON_LIBTORCH to the torch/lib folder of an installed PyTorch, or unset it to use the built-in libtorch.");
        // TorchSharp searches by name too, and would load this second one into the same process, which ends it.
        var other = places.Probed.FirstOrDefault(folder => folder != asked && File.Exists(Path.Combine(folder, Library)));
        return other is null ? asked : throw new ConfigException("NATIVE010",
            $"libtorch of {asked} was asked for, but this program was published with its own in {other}; unset MEGATRON_LIBTORCH, or publish with -p:TorchBackend=none.");
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
