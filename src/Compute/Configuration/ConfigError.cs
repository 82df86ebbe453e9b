namespace Megatron.Compute.Configuration;

/// <summary>
/// One mistake of the user in a setting or an input file. A message has three parts: what happened, which value, what to do.
/// </summary>
/// <param name="Code">Stable code such as <c>CFG001</c>, <c>DATA003</c>, <c>MODEL001</c>; scripts may match on it.</param>
/// <param name="Message">One sentence that names the value and the remedy.</param>
public sealed record ConfigError(string Code, string Message)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Code} {Message}";
}

/// <summary>
/// Input that cannot be used. The console prints each error on its own line, no stack trace, and exits with 2.
/// Thrown before a device is touched whenever the mistake can be known that early.
/// </summary>
public sealed class ConfigException : Exception
{
    /// <summary>All problems found, at least one.</summary>
    public IReadOnlyList<ConfigError> Errors { get; }

    public ConfigException(IReadOnlyList<ConfigError> errors) : base(string.Join(Environment.NewLine, errors)) => Errors = errors;

    public ConfigException(string code, string message) : this([new ConfigError(code, message)]) { }
}
