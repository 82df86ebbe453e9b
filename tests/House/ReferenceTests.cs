using System.Text.RegularExpressions;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>Who may know whom: Client → Silo → Grains → Compute (DESIGN: two planes, one narrow waist).</summary>
public sealed class ReferenceTests
{
    [Theory]
    [InlineData("Compute", "")]
    [InlineData("Grains", "Compute")]
    [InlineData("Silo", "Grains")]
    [InlineData("Client", "Silo")]
    public void Projects_ReferToTheNextPlaneOnly(string project, string expected)
    {
        var file = Path.Combine(Repository.Root, "src", project, $"Megatron.{project}.csproj");
        var references = SourceTree.Items(file, "ProjectReference", "Include").Select(path => Regex.Match(path, @"Megatron\.(\w+)\.csproj").Groups[1].Value);
        Assert.Equal(expected, string.Join(",", references));
    }

    [Fact]
    public void Compute_KnowsNoOrleans()
    {
        Assert.DoesNotContain(Assemblies.Compute.GetReferencedAssemblies(), name => (name.Name ?? "").Contains("Orleans", StringComparison.Ordinal));
        var file = Path.Combine(Repository.Root, "src", "Compute", "Megatron.Compute.csproj");
        Assert.DoesNotContain(SourceTree.Items(file, "PackageReference", "Include"), name => name.Contains("Orleans", StringComparison.Ordinal));
    }

    [Fact]
    public void Grains_NameNoTensor()
    {
        Assert.DoesNotContain(Assemblies.Grains.GetReferencedAssemblies(), name => name.Name == "TorchSharp");
    }

    [Fact]
    public void Namespaces_NeverBeginWithMegatronOrleans()
    {
        // Inside such a namespace the word Orleans would no longer find the package.
        Assert.DoesNotContain(Assemblies.All.SelectMany(MethodScan.WrittenTypes), type => $"{type.Namespace}.".StartsWith("Megatron.Orleans.", StringComparison.Ordinal));
    }

    [Fact]
    public void Solution_HoldsEveryProject()
    {
        var solution = File.ReadAllText(Path.Combine(Repository.Root, "Megatron.Orleans.sln")).Replace('\\', '/');
        Assert.All(SourceTree.Projects().Select(SourceTree.Relative), project => Assert.Contains($"\"{project}\"", solution, StringComparison.Ordinal));
    }
}
