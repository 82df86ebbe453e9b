using Megatron.Client.Cli;

namespace Megatron.EndToEnd.Tests;

/// <summary>What a command line printed and returned.</summary>
internal sealed record CommandResult(int Code, string Output, string Error)
{
    /// <summary>The folder of the run.</summary>
    public string RunFolder => After("output folder: ");

    /// <summary>The rest of the first output line that begins with <paramref name="start"/>.</summary>
    public string After(string start) => Output.Split('\n').First(line => line.StartsWith(start, StringComparison.Ordinal))[start.Length..].Trim();

    /// <summary>Fails with everything that was printed unless the code is as expected.</summary>
    public CommandResult Expect(int code)
    {
        Assert.True(Code == code, $"exit code {Code} instead of {code}\n{Output}\n{Error}");
        return this;
    }
}

/// <summary>The console program inside this process: the same code as the executable from its arguments on.</summary>
internal static class CommandLine
{
    public static Task<CommandResult> RunAsync(params string[] words) => RunAsync(words, CancellationToken.None);

    /// <summary>The same on several ranks, which are threads of this process.</summary>
    public static Task<CommandResult> RunAsync(string[] words, int ranks) =>
        RunAsync(words, name => name == "NPROC_PER_NODE" ? $"{ranks}" : null, CancellationToken.None);

    public static Task<CommandResult> RunAsync(string[] words, CancellationToken cancellation) => RunAsync(words, _ => null, cancellation);

    private static async Task<CommandResult> RunAsync(string[] words, Func<string, string?> environment, CancellationToken cancellation)
    {
        var console = new CommandConsole(new StringWriter { NewLine = "\n" }, new StringWriter { NewLine = "\n" });
        var code = await new MegatronCli(console, environment, TimeProvider.System).RunAsync(words, cancellation);
        return new CommandResult(code, console.Out.ToString() ?? "", console.Error.ToString() ?? "");
    }
}
