using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron verify</c>: comparison with a golden folder.</summary>
/// <param name="console">Where to print.</param>
public sealed class VerifyCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        if (options.Config.Golden is null) throw new ConfigException("CFG008", "--golden is missing; give the folder that holds golden.json.");
        ConfigValidator.ThrowIfInvalid(options.Config, model: null, options.Environment.WorldSize);
        console.Error.WriteLine("error: CFG014 megatron verify is not wired yet; its options are in order.");
        return Task.FromResult(ExitCode.BadInput);
    }
}
