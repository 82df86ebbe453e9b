using System.Reflection;
using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;

namespace Megatron.House.Tests;

/// <summary>Calls that the style bans in src: they block threads, read the wall clock, or read the environment where nobody expects it.</summary>
public sealed class BannedSymbolTests
{
    private static readonly string[] everywhere =
    [
        "System.Threading.Thread.Sleep", "System.Threading.Tasks.Task.Run", "System.Threading.Tasks.Task.Wait", "System.Threading.Tasks.Task.WaitAll",
        "System.Threading.Tasks.Task.WaitAny", "System.Threading.Tasks.Task`1.get_Result", "System.Threading.Tasks.ValueTask`1.get_Result",
        "System.DateTime.get_Now", "System.DateTime.get_Today",
    ];

    private static readonly string[] belowSilo = ["System.Environment.GetEnvironmentVariable", "System.Environment.GetEnvironmentVariables"];

    [Fact]
    public void Source_CallsNoBannedMember()
    {
        var found = Assemblies.All.SelectMany(MethodScan.Mentions).Where(mention => everywhere.Contains(NameOf(mention.Member)) || BlocksOnAwaiter(mention))
            .Concat(new[] { Assemblies.Compute, Assemblies.Grains }.SelectMany(MethodScan.Mentions).Where(mention => belowSilo.Contains(NameOf(mention.Member))))
            .Select(mention => $"{mention.Owner}.{mention.Method.Name} calls {NameOf(mention.Member)}");
        Assert.Empty(found);
    }

    [Fact]
    public void Scan_OfThisClass_FindsEachKind()
    {
        var found = MethodScan.Mentions(typeof(Offender).Assembly).Where(mention => mention.Owner == typeof(Offender)).ToList();
        Assert.Equal(["Blocks", "Reads", "Sleeps", "Waits"],
            found.Where(mention => everywhere.Contains(NameOf(mention.Member)) || BlocksOnAwaiter(mention)).Select(mention => mention.Method.Name).Distinct().Order());
        Assert.Equal(["Reads"], found.Where(mention => belowSilo.Contains(NameOf(mention.Member))).Select(mention => mention.Method.Name).Distinct());
    }

    [Fact]
    public void Tests_DoNotSleep()
    {
        var sleeping = SourceTree.Files("tests", "*.cs").Where(file => !SourceTree.Relative(file).StartsWith("tests/House/", StringComparison.Ordinal))
            .Where(file => File.ReadLines(file).Any(line => Regex.IsMatch(line, @"^(?!\s*//).*\bThread\.Sleep\(")));
        Assert.Empty(sleeping.Select(SourceTree.Relative));
    }

    /// <summary>task.GetAwaiter().GetResult() written by hand; the compiler's own await sits in MoveNext.</summary>
    private static bool BlocksOnAwaiter(Mention mention) => mention.Member is MethodInfo { Name: "GetResult" } method
        && typeof(ICriticalNotifyCompletion).IsAssignableFrom(method.DeclaringType)
        && mention.Method.Name != "MoveNext"
        && mention.Method.Name != "<Main>"; // an asynchronous entry point is called by such a stub

    private static string NameOf(MemberInfo member)
    {
        var type = member.DeclaringType is { IsGenericType: true } generic ? generic.GetGenericTypeDefinition() : member.DeclaringType;
        return $"{type?.FullName}.{member.Name}";
    }
}

/// <summary>Never run: proof that the scan sees what it looks for.</summary>
internal static class Offender
{
    internal static void Sleeps() => Thread.Sleep(1);
    internal static string Reads() => $"{DateTime.Now}{Environment.GetEnvironmentVariable("HOME")}";
    internal static void Waits(Task task) => task.Wait();
    internal static int Blocks(Task<int> task) => task.GetAwaiter().GetResult();
    internal static async Task<int> Awaits(Task<int> task) => await task;
}
