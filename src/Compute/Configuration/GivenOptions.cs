namespace Megatron.Compute.Configuration;

/// <summary>
/// Names of the options that the user gave (command line or configuration file), kept beside <see cref="TrainingConfig"/>: an
/// <c>args.json</c> and the model's <c>config.json</c> fill only what was not given.
/// </summary>
public sealed class GivenOptions
{
    private readonly HashSet<string> _names;

    /// <param name="names">Canonical snake_case names.</param>
    public GivenOptions(IEnumerable<string> names) => _names = new HashSet<string>(names, StringComparer.Ordinal);

    /// <summary>Nothing was given.</summary>
    public static GivenOptions None { get; } = new([]);

    /// <summary>The names in ordinal order.</summary>
    public IReadOnlyList<string> Names => [.. _names.Order(StringComparer.Ordinal)];

    /// <summary>True when the user gave the option <paramref name="name"/> (canonical snake_case).</summary>
    public bool Contains(string name) => _names.Contains(name);

    /// <summary>A copy that also holds <paramref name="names"/>.</summary>
    public GivenOptions Plus(params IEnumerable<string> names) => new(_names.Concat(names));
}
