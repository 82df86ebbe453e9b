using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron completion bash|zsh</c>.</summary>
/// <param name="console">Where to print.</param>
public sealed class CompletionCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        console.Out.WriteLine(options.Words is [var shell] && shell is "bash" or "zsh"
            ? shell == "bash" ? CompletionScript.Bash : CompletionScript.Zsh
            : throw new ConfigException("CFG012", $"megatron completion {string.Join(' ', options.Words)} is not known; use megatron completion bash or zsh."));
        return Task.FromResult(ExitCode.Ok);
    }
}
