namespace Megatron.Client.Cli.Commands;

/// <summary>The tests belong to a checkout, whose launcher runs them; an installed program has none.</summary>
/// <param name="console">Where to print.</param>
public sealed class TestCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        console.Error.WriteLine("error: CFG014 megatron test runs only from a checkout; use ./megatron test or dotnet test there.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
