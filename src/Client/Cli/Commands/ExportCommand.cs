using Megatron.Compute.Configuration;
using Megatron.Compute.Native;
using Megatron.Compute.Training;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron export</c>: conversion between Hugging Face folders and training checkpoints.</summary>
/// <param name="console">Where to print.</param>
public sealed class ExportCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var config = options.Config;
        if (config.ToMcore == config.ToHf)
            throw new ConfigException("CFG008", $"--to_mcore and --to_hf are both {(config.ToHf ? "given" : "missing")}; give one of them.");
        ConfigValidator.ThrowIfInvalid(config, model: null, worldSize: 1);
        LibTorch.Load(new LibTorchOptions { Folder = options.Environment.LibTorch });
        try
        {
            if (config.ToMcore)
                console.Out.WriteLine($"Successfully saved Megatron model weights in `{ModelConversion.ToMcore(config, TimeProvider.System, console.Out.WriteLine)}`.");
            else
                console.Out.WriteLine($"Successfully saved HF model weights in `{ModelConversion.ToHf(config, TimeProvider.System, console.Out.WriteLine)}`.");
            return Task.FromResult(ExitCode.Ok);
        }
        catch (ConversionException exception)
        {
            console.Error.WriteLine("error: EXPORT001 " + exception.Message);
            return Task.FromResult(ExitCode.Failed);
        }
    }
}
