namespace Megatron.Client.Cli.Commands;

/// <summary>Verbs of a checkout, which its launcher carries out (tests, fault bench); an installed program has none.</summary>
/// <param name="console">Where to print.</param>
/// <param name="remedy">What to do instead.</param>
public sealed class CheckoutCommand(CommandConsole console, string remedy) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        console.Error.WriteLine($"error: CFG014 megatron {options.Verb} runs only from a checkout; {remedy}.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
