using System.Diagnostics;
using System.Text.RegularExpressions;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>Rules of the build: versions in one place, libtorch once on disk, nothing of a developer's machine in the sources.</summary>
public sealed class BuildTests
{
    [Fact]
    public void Projects_StateNoPackageVersion()
    {
        Assert.DoesNotContain(SourceTree.Projects(), project => SourceTree.Items(project, "PackageReference", "Version").Count
            + SourceTree.Items(project, "PackageReference", "VersionOverride").Count > 0);
    }

    [Fact]
    public void Packages_AreCentralAndEachHasAReason()
    {
        var central = SourceTree.Items(Path.Combine(Repository.Root, "Directory.Packages.props"), "PackageVersion", "Include");
        Assert.Equal(central.Count, central.Distinct().Count());
        var reasons = File.ReadLines(Path.Combine(Repository.Root, "docs", "adr", "0002-packages.md"))
            .Where(line => line.StartsWith("| `", StringComparison.Ordinal)).Select(line => line.Split('`')[1]).ToList();
        Assert.Empty(reasons.Except(central));
        var used = SourceTree.Projects().Append(Path.Combine(Repository.Root, "tests", "Directory.Build.props"))
            .SelectMany(project => SourceTree.Items(project, "PackageReference", "Include")).ToHashSet();
        Assert.Empty(used.Except(central));
        Assert.Empty(used.Except(reasons));
    }

    [Theory]
    [InlineData("cpu", "libtorch-cpu-linux-x64", "libtorch_cpu.so;libLibTorchSharp.so")]
    [InlineData("cuda", "TorchSharp-cuda-linux", "")]
    [InlineData("none", "", "libLibTorchSharp.so")]
    public void TorchBackend_ChoosesPackageAndPublishedFiles(string backend, string package, string files)
    {
        var output = Dotnet("msbuild", Path.Combine(Repository.Root, "src", "Compute"), $"-p:TorchBackend={backend}", "-getItem:PackageReference", "-getItem:None");
        Assert.Equal(package == "libtorch-cpu-linux-x64", output.Contains("\"libtorch-cpu-linux-x64\"", StringComparison.Ordinal));
        Assert.Equal(package == "TorchSharp-cuda-linux", output.Contains("\"TorchSharp-cuda-linux\"", StringComparison.Ordinal));
        foreach (var file in new[] { "libtorch_cpu.so", "libLibTorchSharp.so" })
        {
            Assert.Equal(files.Split(';').Contains(file), output.Contains($"\"Link\": \"libtorch/{file}\"", StringComparison.Ordinal));
        }
    }

    [Fact]
    public void BuildOutputs_HoldNoLibTorch()
    {
        var copies = new[] { "src", "tests" }.SelectMany(top => Directory.EnumerateDirectories(Path.Combine(Repository.Root, top)))
            .Select(project => Path.Combine(project, "bin")).Where(Directory.Exists)
            .SelectMany(bin => Directory.EnumerateFiles(bin, "lib*.so*", SearchOption.AllDirectories))
            .Where(file => Regex.IsMatch(Path.GetFileName(file), "^lib(torch|c10|LibTorchSharp|gomp)") && !file.Contains("/publish/", StringComparison.Ordinal));
        Assert.Empty(copies);
    }

    [Fact]
    public void Sources_NameNoDevelopersFolder()
    {
        // Assembled, so that this list does not find itself.
        var folders = new Regex($"(^|[^\\w.~}}-])/({string.Join('|', "wo" + "rk", "fa" + "rm", "ro" + "ot", "ho" + "me")})/", RegexOptions.Multiline);
        var found = new List<string>();
        foreach (var file in SourceTree.Files("").Where(file => Path.GetExtension(file) is ".cs" or ".csproj" or ".props" or ".md" or ".sh" or ".yml" or ".yaml" or ".sln" or ".editorconfig" or ".cu" or ""))
        {
            if (new FileInfo(file).Length > 1 << 20) continue;
            var match = folders.Match(File.ReadAllText(file));
            if (match.Success) found.Add($"{SourceTree.Relative(file)}: {match.Value.Trim()}");
        }
        Assert.Empty(found);
    }

    private static string Dotnet(params string[] arguments)
    {
        var start = new ProcessStartInfo(Environment.ProcessPath is { } path && Path.GetFileNameWithoutExtension(path) == "dotnet" ? path : "dotnet", arguments) { RedirectStandardOutput = true };
        // MSBuild started below a test run must not inherit its host's settings.
        start.Environment.Remove("MSBUILD_EXE_PATH");
        using var process = Process.Start(start) ?? throw new InvalidOperationException("dotnet did not start");
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, output);
        return output;
    }
}
