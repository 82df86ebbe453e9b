using System.Reflection;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;

namespace Megatron.House.Tests;

/// <summary>Files aim at 400 lines and methods at 70. The largest are reported; only a file beyond 600 fails.</summary>
public sealed class SizeTests
{
    [Fact]
    public void Files_StayBelow600Lines()
    {
        var sizes = SourceTree.Files("src", "*.cs").Concat(SourceTree.Files("tests", "*.cs"))
            .Select(file => (File: SourceTree.Relative(file), Lines: File.ReadLines(file).Count())).OrderByDescending(size => size.Lines).ToList();
        foreach (var (file, lines) in sizes.Take(5)) TestContext.Current.TestOutputHelper?.WriteLine($"{lines,5} {file}");
        Assert.DoesNotContain(sizes, size => size.Lines > 600);
    }

    [Fact]
    public void Methods_LargestAreReported()
    {
        var sizes = Assemblies.All.SelectMany(MethodLines).OrderByDescending(size => size.Lines).ToList();
        foreach (var (method, lines) in sizes.Take(5)) TestContext.Current.TestOutputHelper?.WriteLine($"{lines,5} {method}");
        Assert.NotEmpty(sizes);
    }

    /// <summary>Lines from the first to the last statement, from the assembly's portable symbols.</summary>
    private static IEnumerable<(string Method, int Lines)> MethodLines(Assembly assembly)
    {
        using var symbols = MetadataReaderProvider.FromPortablePdbStream(File.OpenRead(Path.ChangeExtension(assembly.Location, ".pdb")));
        var reader = symbols.GetMetadataReader();
        var result = new List<(string, int)>();
        foreach (var handle in reader.MethodDebugInformation)
        {
            var points = reader.GetMethodDebugInformation(handle).GetSequencePoints().Where(point => !point.IsHidden).ToList();
            if (points.Count == 0) continue;
            var method = assembly.ManifestModule.ResolveMethod(MetadataTokens.GetToken(handle.ToDefinitionHandle()));
            // A constructor's lines reach from its first field initializer to its body: no measure of anything.
            if (method is null or ConstructorInfo || !MethodScan.IsWritten(method.DeclaringType)) continue;
            result.Add(($"{method.DeclaringType}.{method.Name}", points.Max(point => point.EndLine) - points.Min(point => point.StartLine) + 1));
        }
        return result;
    }
}
