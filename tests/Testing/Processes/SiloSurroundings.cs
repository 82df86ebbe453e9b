namespace Megatron.Testing.Processes;

/// <summary>Where a silo's process runs.</summary>
public sealed record SiloSurroundings
{
    /// <summary>Address that the others reach it by.</summary>
    public string Address { get; init; } = "127.0.0.1";

    /// <summary>As for <see cref="ProgramProcess.StartMegatron"/>.</summary>
    public IReadOnlyList<string> Prefix { get; init; } = [];

    /// <summary>Likewise.</summary>
    public IReadOnlyDictionary<string, string?> Environment { get; init; } = new Dictionary<string, string?>();
}
