using System.Text.RegularExpressions;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>Documents that point at files point at files that exist.</summary>
public sealed class DocumentTests
{
    [Fact]
    public void Markdown_LinksResolve()
    {
        var broken = new List<string>();
        foreach (var file in SourceTree.Files("", "*.md"))
        {
            foreach (Match link in Regex.Matches(File.ReadAllText(file), @"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)"))
            {
                var target = Path.Combine(Path.GetDirectoryName(file)!, link.Groups[1].Value); // a file has a folder
                if (!Path.Exists(target)) broken.Add($"{SourceTree.Relative(file)}: {link.Groups[1].Value}");
            }
        }
        Assert.Empty(broken);
    }

    [Fact]
    public void Architecture_FitsOneScreenAndNamesTheFolderOrder()
    {
        var text = File.ReadAllLines(Path.Combine(Repository.Root, "ARCHITECTURE.md"));
        Assert.InRange(text.Length, 1, 70);
        Assert.Contains($"`{string.Join(' ', FolderOrderTests.Order)}`", text);
    }

    [Fact]
    public void Dockerfile_RestoresEachProjectOfSrc()
    {
        var dockerfile = File.ReadAllText(Path.Combine(Repository.Root, "docker", "Dockerfile"));
        Assert.All(SourceTree.Files("src", "*.csproj").Select(SourceTree.Relative), project => Assert.Contains($"COPY {project} ", dockerfile, StringComparison.Ordinal));
    }

    [Fact]
    public void ContinuousIntegration_RunsTheReadmesTestCommand()
    {
        const string command = "./megatron test";
        Assert.Contains(command, File.ReadAllText(Path.Combine(Repository.Root, "README.md")), StringComparison.Ordinal);
        Assert.Equal($"exec {command}", File.ReadLines(Path.Combine(Repository.Root, ".ci", "run")).Last());
    }
}
