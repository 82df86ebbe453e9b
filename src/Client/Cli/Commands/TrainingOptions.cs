using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli.Commands;

/// <summary>What sft and pt check before anything is read: all mistakes at once.</summary>
internal static class TrainingOptions
{
    /// <summary>Checks what can be known without the model.</summary>
    /// <exception cref="ConfigException">There is at least one mistake.</exception>
    internal static void ThrowIfInvalid(ParsedOptions options)
    {
        var ranks = options.Environment.WorldSize;
        ConfigError[] errors =
        [
            .. ConfigValidator.MissingForTraining(options.Config),
            .. ConfigValidator.Validate(options.Config, model: null, ranks),
            .. UnsupportedValues.Check(options.Config, model: null, ranks),
        ];
        if (errors.Length > 0) throw new ConfigException(errors);
    }
}
