using System.Reflection;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.House.Tests;

/// <summary>No option is accepted and then ignored: it is read by the code that does the work, refused by name, or declared to change nothing.</summary>
public sealed class OptionTests
{
    /// <summary>Code that checks, copies or prints options does not make them work.</summary>
    private static readonly string[] checkers =
        ["TrainingConfig", "OptionCatalog", "ConfigValidator", "UnsupportedValues", "OptionNotices", "RangeRules", "CombinationRules", "LayoutRules"];

    [Fact]
    public void Options_ThatWork_AreReadByTheCodeThatDoesTheWork()
    {
        var reads = Assemblies.All.SelectMany(MethodScan.Mentions).Where(mention => !checkers.Contains(mention.Owner.Name))
            .Select(mention => mention.Member).OfType<MethodInfo>().Where(method => method.DeclaringType == typeof(TrainingConfig) && method.Name.StartsWith("get_", StringComparison.Ordinal))
            .Select(method => method.Name[4..]).ToHashSet();
        var used = Verb.All.SelectMany(verb => verb.Sections).ToHashSet();
        var ignored = OptionCatalog.All
            .Where(option => option.Effect == OptionEffect.Works && used.Contains(option.Section) && !reads.Contains(option.PropertyName))
            .Where(option => UnsupportedValues.LegalValues(option.Name) is null && !IsReadByName(option.Name)).Select(option => option.Name);
        Assert.Empty(ignored);
    }

    [Fact]
    public void Checkers_AreAllThere()
    {
        var types = Assemblies.Compute.GetTypes().Select(type => type.Name).ToHashSet();
        Assert.Empty(checkers.Except(types));
        var rules = Directory.GetFiles(Path.Combine(Repository.Root, "src", "Compute", "Configuration"), "*Rules.cs").Select(Path.GetFileNameWithoutExtension);
        Assert.Empty(rules.Except(checkers));
    }

    /// <summary>Some options act on the reading of options itself and are asked for by their name in text.</summary>
    private static bool IsReadByName(string name) => SourceTree.Files("src/Client", "*.cs")
        .Any(file => Regex.IsMatch(File.ReadAllText(file), $"GetValueOrDefault\\(\"{name}\"\\)"));
}
