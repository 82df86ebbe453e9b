using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>Where a command prints: results to <see cref="Out"/>, one sentence per line about mistakes to <see cref="Error"/>.</summary>
/// <param name="Out">Standard output.</param>
/// <param name="Error">Standard error.</param>
public sealed record CommandConsole(TextWriter Out, TextWriter Error)
{
    /// <summary>How the user calls the program, for lines that can be copied: <c>./megatron</c> from a clone.</summary>
    public string Program { get; init; } = "megatron";

    /// <summary>Width of the terminal that <see cref="Out"/> writes to; null when it is piped or read by a program.</summary>
    public int? Columns => !Console.IsOutputRedirected && ReferenceEquals(Out, Console.Out) ? Console.WindowWidth : null;

    /// <summary>Prints each error on a line of its own.</summary>
    public void Report(IEnumerable<ConfigError> errors)
    {
        foreach (var error in errors) Error.WriteLine($"error: {error}");
    }
}

/// <summary>Exit codes of every verb.</summary>
public static class ExitCode
{
    /// <summary>Done; also a run that was asked to stop and saved.</summary>
    public const int Ok = 0;

    /// <summary>A run or a verification failed.</summary>
    public const int Failed = 1;

    /// <summary>The input cannot be used; nothing was written.</summary>
    public const int BadInput = 2;
}
