using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron docs parameters</c>: prints what <c>docs/parameters.md</c> must hold.</summary>
/// <param name="console">Where to print.</param>
public sealed class DocsCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        if (options.Words is not ["parameters"])
            throw new ConfigException("CFG012", $"megatron docs {string.Join(' ', options.Words)} is not known; use megatron docs parameters.");
        console.Out.Write(ParameterDocs.Write());
        return Task.FromResult(ExitCode.Ok);
    }
}
