namespace Megatron.Client.Cli.Commands;

/// <summary>A verb whose name is fixed and whose work is not built yet.</summary>
/// <param name="console">Where to print.</param>
public sealed class NotBuiltCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        console.Error.WriteLine($"error: CFG014 megatron {options.Verb} is not built yet; use sft, pt, export or verify.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
