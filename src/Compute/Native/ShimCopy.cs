using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Native;

/// <summary>
/// A private copy of TorchSharp's shim for systems whose libstdc++ is older than GCC 13's (Debian 12, Ubuntu 22.04). The shim demands the
/// version GLIBCXX_3.4.32 for a symbol that it never calls; the copy marks that one demand as optional (docs/adr/0001).
/// </summary>
internal static class ShimCopy
{
    private const string Demand = "GLIBCXX_3.4.32";

    /// <summary>The only symbol of that version, so its absence means an older libstdc++.</summary>
    private const string SymbolOfDemand = "_ZSt21ios_base_library_initv";

    /// <summary>True when the loaded libstdc++ lacks the demanded version.</summary>
    public static bool NeedsPatch(nint standardLibrary) => !NativeLibrary.TryGetExport(standardLibrary, SymbolOfDemand, out _);

    /// <summary>Loads the patched copy from the user's cache, or from a private temporary folder when the cache cannot be written.</summary>
    /// <exception cref="ConfigException">NATIVE006: the shim is damaged. NATIVE007: no folder could be written.</exception>
    public static (string Path, nint Handle) Load(string original, string? cacheFolder, Func<string, nint> load)
    {
        var image = File.ReadAllBytes(original);
        var key = Convert.ToHexStringLower(SHA256.HashData(image))[..16];
        try
        {
            ElfVersionNeeds.MakeOptional(image, Demand);
        }
        catch (BadImageFormatException exception)
        {
            throw new ConfigException("NATIVE006", $"{original} is damaged ({exception.Message}); run dotnet restore --force, or publish the program again.");
        }
        if (WriteToCache(image, key, cacheFolder, out var cacheProblem) is { } cached) return (cached, load(cached));

        var temporary = WriteToTemporary(image, cacheProblem);
        var handle = load(temporary);
        // The mapping stays; nothing is left behind.
        Directory.Delete(Path.GetDirectoryName(temporary)!, recursive: true); // the path of a file in a folder just made
        return (temporary, handle);
    }

    private static string? WriteToCache(byte[] image, string key, string? cacheFolder, out string problem)
    {
        // Without a home folder the name is empty; a relative path would depend on where the user stands.
        var root = cacheFolder ?? Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData, Environment.SpecialFolderOption.DoNotVerify);
        var folder = cacheFolder is null ? Path.Combine(root, "megatron", "native", key) : Path.Combine(root, key);
        problem = $"{folder}: not an absolute path";
        if (!Path.IsPathRooted(folder)) return null;
        try
        {
            Directory.CreateDirectory(folder);
            var path = Path.Combine(folder, "libLibTorchSharp.so");
            if (!HasContent(path, image)) WriteAtomically(path, image);
            return path;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            problem = $"{folder}: {exception.Message}";
            return null;
        }
    }

    private static string WriteToTemporary(byte[] image, string cacheProblem)
    {
        try
        {
            // A folder of this process alone with mode 700: in a shared temporary folder nobody else can plant a library.
            var path = Path.Combine(Directory.CreateTempSubdirectory("megatron-native-").FullName, "libLibTorchSharp.so");
            File.WriteAllBytes(path, image);
            return path;
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("NATIVE007", $"the copy of libLibTorchSharp.so that this system's libstdc++ needs could not be written ({cacheProblem}; "
                + $"{Path.GetTempPath()}: {exception.Message}); make one of these folders writable, or use a system with GCC 13's libstdc++ (Debian 13, Ubuntu 24.04).");
        }
    }

    private static bool HasContent(string path, byte[] image) => File.Exists(path) && File.ReadAllBytes(path).AsSpan().SequenceEqual(image);

    private static void WriteAtomically(string path, byte[] image)
    {
        var unfinished = $"{path}.{Guid.NewGuid():N}";
        File.WriteAllBytes(unfinished, image);
        File.Move(unfinished, path, overwrite: true);
    }
}
