using System.Reflection;
using System.Text.RegularExpressions;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>Inside Compute a folder may use only folders to its left.</summary>
public sealed class FolderOrderTests
{
    internal static readonly string[] Order =
    [
        "Configuration", "Native", "Distributed", "Tokenization", "Data", "Ops", "TensorParallel", "Moe", "Transformer", "Models", "PipelineParallel",
        "Optimizers", "Checkpointing", "Inference", "Training",
    ];

    private const string Prefix = "Megatron.Compute.";

    [Fact]
    public void Folders_AreTheKnownOnes()
    {
        var folders = Directory.GetDirectories(Path.Combine(Repository.Root, "src", "Compute")).Select(path => Path.GetFileName(path)).Except(["bin", "obj"]);
        Assert.Empty(folders.Except(Order));
    }

    [Fact]
    public void Files_LieInTheFolderOfTheirNamespace()
    {
        var wrong = new List<string>();
        foreach (var file in SourceTree.Files("src", "*.cs"))
        {
            var declared = Regex.Match(File.ReadAllText(file), @"^namespace ([\w.]+);", RegexOptions.Multiline).Groups[1].Value;
            if (declared.Length == 0) continue; // top-level program
            var folders = Path.GetDirectoryName(SourceTree.Relative(file))!.Split('/')[1..]; // a file below src has a folder
            var expected = "Megatron." + string.Join('.', folders);
            if (declared != expected) wrong.Add($"{SourceTree.Relative(file)} declares {declared}, expected {expected}");
        }
        Assert.Empty(wrong);
    }

    [Fact]
    public void Usings_PointLeft()
    {
        var wrong = new List<string>();
        foreach (var file in SourceTree.Files(Path.Combine("src", "Compute"), "*.cs"))
        {
            var from = SourceTree.Relative(file).Split('/')[2];
            foreach (Match used in Regex.Matches(File.ReadAllText(file), @"^(?:global )?using (?:static )?(?:\w+ = )?Megatron\.Compute\.(\w+)", RegexOptions.Multiline))
            {
                if (!MayUse(from, used.Groups[1].Value)) wrong.Add($"{SourceTree.Relative(file)} uses {used.Groups[1].Value}");
            }
        }
        Assert.Empty(wrong);
    }

    [Fact]
    public void CompiledCode_PointsLeft()
    {
        // Catches what usings do not show: names qualified in place, and types that only pass through a var.
        var compute = Assemblies.Compute;
        var byCode = MethodScan.Mentions(compute).SelectMany(mention => TypesOf(mention.Member).Select(type => (mention.Owner, Used: type)));
        var byDeclaration = MethodScan.WrittenTypes(compute).SelectMany(type => MethodScan.DeclaredTypes(type).Select(used => (Owner: type, Used: used)));
        var wrong = byCode.Concat(byDeclaration)
            .Where(pair => pair.Used.Assembly == compute && FolderOf(pair.Owner) is { } from && FolderOf(pair.Used) is { } to && !MayUse(from, to))
            .Select(pair => $"{pair.Owner} uses {pair.Used}").Distinct().Order(StringComparer.Ordinal);
        Assert.Empty(wrong);
    }

    [Theory]
    [InlineData("Ops", "Distributed", true)]
    [InlineData("Ops", "Ops", true)]
    [InlineData("Distributed", "Ops", false)]
    [InlineData("Ops", "Unknown", false)]
    public void MayUse_FollowsTheOrder(string from, string to, bool expected) => Assert.Equal(expected, MayUse(from, to));

    private static bool MayUse(string from, string to) => Array.IndexOf(Order, to) is >= 0 and var index && index <= Array.IndexOf(Order, from);

    private static string? FolderOf(Type type) =>
        type.Namespace is { } name && name.StartsWith(Prefix, StringComparison.Ordinal) ? name[Prefix.Length..].Split('.')[0] : null;

    private static IEnumerable<Type> TypesOf(MemberInfo member) => member switch
    {
        Type type => MethodScan.Parts(type),
        MethodInfo { IsGenericMethod: true } method => method.GetGenericArguments().SelectMany(MethodScan.Parts).Concat(OwnerOf(method)),
        _ => OwnerOf(member),
    };

    private static IEnumerable<Type> OwnerOf(MemberInfo member) => member.DeclaringType is { } type ? MethodScan.Parts(type) : [];
}
