using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>An option of a verb that describes no run.</summary>
/// <param name="Name">snake_case, without dashes; the dashed spelling is accepted too.</param>
/// <param name="Value">Kind of value for the help; empty for a flag.</param>
/// <param name="Help">What it does.</param>
public sealed record WordOption(string Name, string Value, string Help);

/// <summary>
/// The words of a verb that describes no run (silo, jobs, cluster, faults): they have a handful of options of their own, which do not belong into
/// the configuration of a training.
/// </summary>
public sealed class WordOptions
{
    private readonly Dictionary<string, string> values = new(StringComparer.Ordinal);

    private WordOptions(IReadOnlyList<string> positional) => Positional = positional;

    /// <summary>Words that belong to no option, in their order.</summary>
    public IReadOnlyList<string> Positional { get; }

    /// <summary>Reads the words; the last of several occurrences wins.</summary>
    /// <exception cref="ConfigException">CFG001: an unknown option; CFG003: a value is missing (all are listed).</exception>
    public static WordOptions Parse(IReadOnlyList<string> words, IReadOnlyList<WordOption> known)
    {
        var errors = new List<ConfigError>();
        var positional = new List<string>();
        var result = new WordOptions(positional);
        for (int i = 0; i < words.Count; i++)
        {
            if (!words[i].StartsWith("--", StringComparison.Ordinal))
            {
                positional.Add(words[i]);
                continue;
            }
            string[] parts = words[i][2..].Split('=', 2);
            var option = known.FirstOrDefault(option => option.Name == parts[0].Replace('-', '_'));
            if (option is null)
                errors.Add(Unknown(parts[0], known));
            else if (parts.Length == 2)
                result.values[option.Name] = parts[1];
            else if (option.Value.Length == 0)
                result.values[option.Name] = "true";
            else if (i + 1 < words.Count && !words[i + 1].StartsWith("--", StringComparison.Ordinal))
                result.values[option.Name] = words[++i];
            else
                errors.Add(new ConfigError("CFG003", $"--{option.Name} has no value; give {option.Value}."));
        }
        return errors.Count == 0 ? result : throw new ConfigException(errors);
    }

    /// <summary>The value of an option, or null when it was not given.</summary>
    public string? Text(string name) => values.GetValueOrDefault(name);

    /// <summary>The value of an option that must be given.</summary>
    /// <exception cref="ConfigException">CFG008.</exception>
    public string Required(string name, string remedy) => Text(name) ?? throw new ConfigException("CFG008", $"--{name} is missing; {remedy}.");

    /// <summary>Whether a flag is set.</summary>
    /// <exception cref="ConfigException">CFG003: neither true nor false.</exception>
    public bool Flag(string name) => Text(name) switch
    {
        null => false,
        var text when bool.TryParse(text, out bool value) => value,
        var text => throw new ConfigException("CFG003", $"--{name} = {text} cannot be read; give true or false."),
    };

    /// <summary>The value of a whole number, or null when it was not given.</summary>
    /// <exception cref="ConfigException">CFG003: no whole number of the range.</exception>
    public int? Number(string name, int least, int most)
    {
        if (Text(name) is not { } text) return null;
        if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) && number >= least && number <= most) return number;
        throw new ConfigException("CFG003", string.Create(CultureInfo.InvariantCulture, $"--{name} = {text} cannot be read; give a whole number from {least} to {most}."));
    }

    /// <summary>The value of an option with a fixed set of words, or the first of them.</summary>
    /// <exception cref="ConfigException">CFG003: another word.</exception>
    public string Choice(string name, params IReadOnlyList<string> choices)
    {
        if (Text(name) is not { } text) return choices[0];
        return choices.Contains(text) ? text : throw new ConfigException("CFG003", $"--{name} = {text} is not known; use {OptionValue.Alternatives(choices)}.");
    }

    private static ConfigError Unknown(string name, IReadOnlyList<WordOption> known)
    {
        string[] names = [.. known.Select(option => option.Name)];
        string? near = Spelling.Nearest(name.Replace('-', '_'), names);
        return new ConfigError("CFG001", near is null
            ? $"--{name} is not an option of this verb; its options are {string.Join(", ", names.Select(name => "--" + name))}."
            : $"--{name} is not an option of this verb; did you mean --{near}?");
    }
}
