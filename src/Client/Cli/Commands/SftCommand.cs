namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron sft</c>: supervised fine-tuning.</summary>
/// <param name="console">Where to print.</param>
public sealed class SftCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        TrainingOptions.ThrowIfInvalid(options);
        console.Error.WriteLine("error: CFG014 megatron sft is not wired yet; its options are in order.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
