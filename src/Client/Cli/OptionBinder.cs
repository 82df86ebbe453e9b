using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>The values that a user gave, by canonical name, and what was wrong on the way.</summary>
public sealed class GivenValues
{
    private readonly Dictionary<string, object?> _values = new(StringComparer.Ordinal);

    /// <summary>Values by canonical name.</summary>
    public IReadOnlyDictionary<string, object?> Values => _values;

    /// <summary>Mistakes; any one stops the command.</summary>
    public List<ConfigError> Errors { get; } = [];

    /// <summary>Lines for the user.</summary>
    public List<string> Notices { get; } = [];

    /// <summary>Sets a value; a later one wins.</summary>
    public void Set(OptionInfo option, object? value) => _values[option.Name] = value;

    /// <summary>Adds words to a list that the same source already began, or begins it.</summary>
    public void Append(OptionInfo option, object? value) => _values[option.Name] = (_values.GetValueOrDefault(option.Name), value) switch
    {
        (IReadOnlyList<string> before, IReadOnlyList<string> more) => (string[])[.. before, .. more],
        (IReadOnlyList<double> before, IReadOnlyList<double> more) => (double[])[.. before, .. more],
        _ => value,
    };
}

/// <summary>Occurrences of options → a configuration and the names that were given.</summary>
public static class OptionBinder
{
    /// <summary>
    /// Reads the configuration files in their order, then the command line over them, then <c>extra_megatron_kwargs</c> over both.
    /// </summary>
    /// <returns>The values, and the variables of an <c>ENV</c> map in a file.</returns>
    public static (GivenValues Given, IReadOnlyDictionary<string, string> FileEnvironment) Read(CommandWords words)
    {
        var given = new GivenValues();
        var environment = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (var file in ConfigFiles(words, given)) ConfigFileReader.Read(file, words.Verb.IsTraining, given, environment);
        ReadOccurrences(words, given);
        ReadExtra(words.Verb, given);
        if (given.Values.GetValueOrDefault("ignore_args_error") is true)
        {
            given.Notices.AddRange(given.Errors.Where(error => error.Code == "CFG001").Select(error => error.Message));
            given.Errors.RemoveAll(error => error.Code == "CFG001");
        }

        return (given, environment);
    }

    /// <summary>The value of an option from the words after it: JSON options also take the path of a file.</summary>
    internal static bool TryRead(OptionInfo option, IReadOnlyList<string> words, out object? value, out ConfigError problem)
    {
        if (option.Kind != OptionKind.Json || words.Count != 1 || words[0].TrimStart() is ['{' or '[', ..])
            return OptionValue.TryParse(option, words, out value, out problem);
        if (File.Exists(words[0])) return OptionValue.TryParse(option, [File.ReadAllText(words[0])], out value, out problem);
        value = null;
        problem = new("CFG003", $"--{option.Name} = {words[0]} is neither JSON nor a file that exists; give a JSON object or list, or the path of one.");
        return false;
    }

    /// <summary>
    /// The option that a spelling means; <paramref name="negated"/> for the <c>no_</c> form of a flag whose default is true.
    /// </summary>
    internal static OptionInfo? Resolve(string name, bool trainingVerb, out bool negated)
    {
        negated = false;
        if (OptionCatalog.Find(name, trainingVerb) is { } option) return option;
        var snake = name.Replace('-', '_');
        if (!snake.StartsWith("no_", StringComparison.Ordinal)) return null;
        var positive = OptionCatalog.Find(snake[3..], trainingVerb);
        negated = positive is { Kind: OptionKind.Flag } && positive.Default is true;
        return negated ? positive : null;
    }

    private static void ReadOccurrences(CommandWords words, GivenValues given)
    {
        var begun = new HashSet<string>(StringComparer.Ordinal);
        foreach (var occurrence in words.Options.Where(occurrence => occurrence.Name is not "config"))
        {
            var option = Resolve(occurrence.Name, words.Verb.IsTraining, out var negated);
            if (option is null)
            {
                given.Errors.Add(ConfigJson.UnknownOption(occurrence.Name));
                continue;
            }

            if (!TryRead(option, occurrence.Words, out var value, out var problem)) given.Errors.Add(problem);
            else if (negated) given.Set(option, value is false);
            else if (begun.Add(option.Name)) given.Set(option, value);
            else given.Append(option, value);
        }
    }

    private static List<string> ConfigFiles(CommandWords words, GivenValues given)
    {
        var files = new List<string>();
        foreach (var (word, index) in words.Words.Select((word, index) => (word, index)))
        {
            if (index == 0 && Path.GetExtension(word) is ".yaml" or ".yml" or ".json") files.Add(word);
            else given.Errors.Add(new("CFG012", $"The word {word} belongs to no option; give options as --name value, or a configuration file first."));
        }

        foreach (var occurrence in words.Options.Where(occurrence => occurrence.Name == "config"))
        {
            if (occurrence.Words.Count == 1) files.Add(occurrence.Words[0]);
            else given.Errors.Add(new("CFG003", $"--config = {string.Join(' ', occurrence.Words)} cannot be read; give one YAML or JSON file."));
        }

        return files;
    }

    /// <summary>Options inside <c>extra_megatron_kwargs</c>: known ones win over all others, unknown ones are mistakes.</summary>
    private static void ReadExtra(Verb verb, GivenValues given)
    {
        if (given.Values.GetValueOrDefault("extra_megatron_kwargs") is not string json) return;
        using var document = JsonDocument.Parse(json);
        if (document.RootElement.ValueKind != JsonValueKind.Object)
        {
            given.Errors.Add(new("CFG003", $"--extra_megatron_kwargs = {json} is a list; give a JSON object of options."));
            return;
        }

        foreach (var property in document.RootElement.EnumerateObject())
        {
            var option = Resolve(property.Name, verb.IsTraining, out var negated);
            if (option is null) given.Errors.Add(ConfigJson.UnknownOption(property.Name));
            else if (!ConfigJson.TryConvert(option, property.Value, out var value, out var problem)) given.Errors.Add(problem);
            else given.Set(option, negated ? value is false : value);
        }
    }
}
