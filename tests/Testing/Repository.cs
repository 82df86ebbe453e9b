using System.Reflection;

namespace Megatron.Testing;

/// <summary>Where the checkout and its test assets lie.</summary>
public static class Repository
{
    /// <summary>Absolute path of the checkout.</summary>
    public static string Root { get; } = typeof(Repository).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>()
        .Single(attribute => attribute.Key == "RepositoryRoot").Value!;

    /// <summary>Absolute path of a file or folder below <c>tests/assets</c>.</summary>
    public static string Asset(params string[] parts) => Path.Combine([Root, "tests", "assets", .. parts]);

    /// <summary>Absolute path of one of the quick start's texts, <c>moby-dick.txt</c> or <c>tang-poems.txt</c>.</summary>
    public static string Text(string name) => Path.Combine(Root, "src", "Client", "Quickstart", "Assets", "data", name);
}
