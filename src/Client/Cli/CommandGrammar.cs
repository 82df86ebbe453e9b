using System.CommandLine;
using System.CommandLine.Parsing;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>One option as it stands on the command line, with the words up to the next option.</summary>
/// <param name="Name">As spelt, without the leading dashes.</param>
/// <param name="Words">Words after it; none for a bare flag.</param>
public sealed record Occurrence(string Name, IReadOnlyList<string> Words);

/// <summary>A command line cut into pieces.</summary>
/// <param name="Verb">The verb.</param>
/// <param name="Words">Words before the first option.</param>
/// <param name="Options">Options in their order.</param>
public sealed record CommandWords(Verb Verb, IReadOnlyList<string> Words, IReadOnlyList<Occurrence> Options);

/// <summary>
/// The grammar in System.CommandLine: verbs, option names with both spellings, response files (<c>@file</c>) and completion. Values are
/// read by <see cref="OptionBinder"/> from the sequence of tokens, because the last of several occurrences must win and flags know more
/// words than true and false.
/// </summary>
public static class CommandGrammar
{
    /// <summary>The verbs with all their options.</summary>
    public static RootCommand Build()
    {
        var root = new RootCommand("Trains large language models from .NET.");
        var training = Options(trainingVerb: true);
        var others = Options(trainingVerb: false);
        foreach (var verb in Verb.All)
        {
            var command = new Command(verb.Name, verb.Summary) { TreatUnmatchedTokensAsErrors = false, Hidden = verb.IsHidden };
            if (verb.TakesOptions)
                foreach (var option in verb.IsTraining ? training : others)
                    command.Options.Add(option);
            root.Subcommands.Add(command);
        }

        return root;
    }

    /// <summary>Cuts the arguments after the verb into options and words.</summary>
    /// <exception cref="ConfigException">CFG011: a response file cannot be read.</exception>
    public static CommandWords Cut(Verb verb, IReadOnlyList<string> arguments)
    {
        if (!verb.TakesOptions) return new CommandWords(verb, [.. arguments.Skip(1)], []);
        var errors = new List<ConfigError>();
        var configuration = new ParserConfiguration
        {
            EnablePosixBundling = false,
            ResponseFileTokenReplacer = (string token, out IReadOnlyList<string>? replacement, out string? message) =>
            {
                message = null;
                replacement = ReadResponseFile(token, errors);
                return true;
            },
        };
        var tokens = CommandLineParser.Parse(Build(), arguments, configuration).Tokens;
        if (errors.Count > 0) throw new ConfigException(errors);
        return Group(verb, tokens.SkipWhile(token => token.Type != TokenType.Command).Skip(1));
    }

    private static CommandWords Group(Verb verb, IEnumerable<Token> tokens)
    {
        var leading = new List<string>();
        var options = new List<Occurrence>();
        List<string>? words = null;
        foreach (var token in tokens)
        {
            var isOption = token.Type == TokenType.Option || LooksLikeOption(token.Value);
            if (!isOption)
            {
                (words ?? leading).Add(token.Value);
                continue;
            }

            var (name, attached) = SplitAtEquals(token.Value);
            words = attached is null ? [] : [attached];
            options.Add(new Occurrence(name, words));
        }

        return new CommandWords(verb, leading, options);
    }

    /// <summary>An unknown option; "-5" and "-x" are values, as for every other parser of this kind.</summary>
    private static bool LooksLikeOption(string text) => text.Length > 2 && text.StartsWith("--", StringComparison.Ordinal) && char.IsAsciiLetter(text[2]);

    private static (string Name, string? Value) SplitAtEquals(string text)
    {
        var bare = text.TrimStart('-');
        var equals = bare.IndexOf('=', StringComparison.Ordinal);
        return equals < 0 ? (bare, null) : (bare[..equals], bare[(equals + 1)..]);
    }

    private static List<string> ReadResponseFile(string path, List<ConfigError> errors)
    {
        try
        {
            return [.. File.ReadLines(path).Where(line => !line.TrimStart().StartsWith('#')).SelectMany(CommandLineParser.SplitCommandLine)];
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            errors.Add(new("CFG011", $"The response file {path} cannot be read ({exception.Message.TrimEnd('.')}); correct the path after @."));
            return [];
        }
    }

    private static List<Option> Options(bool trainingVerb)
    {
        var taken = OptionCatalog.All.SelectMany(option => option.TrainingAliases).ToHashSet(StringComparer.Ordinal);
        var options = new List<Option> { Make("config", "YAML or JSON file with options.", [], false), Make("help", "Show the options.", ["h"], false) };
        foreach (var info in OptionCatalog.All.Where(info => !trainingVerb || !taken.Contains(info.Name)))
        {
            var names = info.Aliases.Concat(trainingVerb ? info.TrainingAliases : []).ToList();
            var option = Make(info.Name, info.Help, names, info.Kind is OptionKind.TextList or OptionKind.NumberList);
            var completions = info.Kind == OptionKind.Flag ? ["true", "false"] : info.Choices;
            if (completions.Count > 0) option.CompletionSources.Add(_ => completions.Select(word => new System.CommandLine.Completions.CompletionItem(word)));
            if (info.Kind == OptionKind.Flag && info.Default is true) AddSpellings(option, "no_" + info.Name);
            options.Add(option);
        }

        return options;
    }

    private static Option<string[]> Make(string name, string help, IEnumerable<string> aliases, bool isList)
    {
        var option = new Option<string[]>("--" + name)
        {
            Description = help, Arity = ArgumentArity.ZeroOrMore, AllowMultipleArgumentsPerToken = isList,
        };
        AddSpellings(option, name);
        foreach (var alias in aliases) AddSpellings(option, alias);
        return option;
    }

    private static void AddSpellings(Option option, string name)
    {
        string[] spellings = name.Length == 1 ? ["-" + name] : ["--" + name, "--" + name.Replace('_', '-')];
        foreach (var spelling in spellings.Where(spelling => spelling != option.Name)) option.Aliases.Add(spelling);
    }
}
