using System.Xml.Linq;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>The files of the checkout, without what a build or a tool leaves there.</summary>
internal static class SourceTree
{
    private static readonly HashSet<string> ignoredFolders = ["bin", "obj", ".git", ".vs", ".idea", "artifacts", "TestResults", "megatron_output", ".gpu"];

    /// <summary>Absolute paths below <paramref name="folder"/> ("" for everything).</summary>
    public static IEnumerable<string> Files(string folder, string pattern = "*")
    {
        var pending = new Stack<string>([Path.Combine(Repository.Root, folder)]);
        while (pending.TryPop(out var current))
        {
            foreach (var file in Directory.EnumerateFiles(current, pattern)) yield return file;
            foreach (var child in Directory.EnumerateDirectories(current))
            {
                if (!ignoredFolders.Contains(Path.GetFileName(child))) pending.Push(child);
            }
        }
    }

    /// <summary>Path below the checkout, with forward slashes.</summary>
    public static string Relative(string path) => Path.GetRelativePath(Repository.Root, path).Replace('\\', '/');

    /// <summary>All project files.</summary>
    public static IEnumerable<string> Projects() => Files("src", "*.csproj").Concat(Files("tests", "*.csproj")).Concat(Files("bench", "*.csproj"));

    /// <summary>Values of one attribute of all elements with a name, in a project file.</summary>
    public static IReadOnlyList<string> Items(string project, string element, string attribute) =>
        [.. XDocument.Load(project).Descendants(element).Select(item => item.Attribute(attribute)?.Value).OfType<string>()];
}
