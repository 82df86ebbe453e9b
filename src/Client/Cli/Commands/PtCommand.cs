namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron pt</c>: continued pre-training.</summary>
/// <param name="console">Where to print.</param>
public sealed class PtCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        TrainingOptions.ThrowIfInvalid(options);
        console.Error.WriteLine("error: CFG014 megatron pt is not wired yet; its options are in order.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
