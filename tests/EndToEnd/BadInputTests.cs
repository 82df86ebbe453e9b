using System.Text.RegularExpressions;
using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>Every refusal is one sentence with a code, exit code 2, no stack trace, and leaves every file as it was.</summary>
public sealed partial class BadInputTests
{
    public static TheoryData<string> Names => [.. BadInputCases.All.Select(item => item.Name)];

    [Theory, MemberData(nameof(Names))]
    public async Task BadInput_IsRefusedWithOneSentenceAndWritesNothing(string name)
    {
        var item = BadInputCases.All.Single(item => item.Name == name);
        using var work = new Workspace(rows: 16, layers: 1, hidden: 32);
        item.Break(work);
        var before = RunFiles.Bytes(work.Root);
        var folders = Directory.GetDirectories(work.Root, "*", SearchOption.AllDirectories);
        var result = (await CommandLine.RunAsync(item.Words(work))).Expect(ExitCode.BadInput);

        var lines = result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        TestContext.Current.TestOutputHelper?.WriteLine(result.Error);
        Assert.InRange(lines.Length, 1, 20);
        Assert.All(lines, line => Assert.Matches(Sentence(), line));
        Assert.Contains(lines, line => line.StartsWith("error: " + item.Code, StringComparison.Ordinal) && line.Contains(item.Says, StringComparison.Ordinal));
        Assert.DoesNotContain("   at ", result.Error + result.Output, StringComparison.Ordinal);

        var after = RunFiles.Bytes(work.Root);
        Assert.Equal(before.Keys, after.Keys);
        foreach (var (file, bytes) in before) Assert.True(bytes.AsSpan().SequenceEqual(after[file]), $"{file} was changed");
        Assert.Equal(folders.Order(), Directory.GetDirectories(work.Root, "*", SearchOption.AllDirectories).Order());
    }

    [Fact]
    public void Table_HasAtLeast60Cases() => Assert.True(BadInputCases.All.Count >= 60, $"{BadInputCases.All.Count} cases");

    [GeneratedRegex(@"^error: [A-Z]+[0-9]{3} \S.*[.?]$", RegexOptions.CultureInvariant)]
    private static partial Regex Sentence();
}
