using System.CommandLine;
using System.Globalization;
using System.Reflection;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>
/// The console from arguments to exit code: finds the verb, reads its options, runs its command, and turns every failure into one line per
/// mistake on standard error. Stack traces go to a file.
/// </summary>
/// <param name="console">Where to print.</param>
/// <param name="environment">Reads an environment variable.</param>
/// <param name="time">Names the file of an unexpected failure.</param>
public sealed class MegatronCli(CommandConsole console, Func<string, string?> environment, TimeProvider time)
{
    /// <summary>Version of the program.</summary>
    public static string Version { get; } =
        typeof(MegatronCli).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? "0";

    /// <summary>Runs one command line.</summary>
    /// <param name="arguments">The words after <c>megatron</c>.</param>
    /// <param name="cancellationToken">Asks a run to save and end.</param>
    /// <returns>An <see cref="ExitCode"/>.</returns>
    public async Task<int> RunAsync(IReadOnlyList<string> arguments, CancellationToken cancellationToken)
    {
        try
        {
            return await DispatchAsync(arguments, cancellationToken);
        }
        catch (ConfigException exception)
        {
            console.Report(exception.Errors);
            return ExitCode.BadInput;
        }
        catch (OperationCanceledException) when (cancellationToken.IsCancellationRequested)
        {
            console.Error.WriteLine("error: stopped before there was anything to save.");
            return ExitCode.Failed;
        }
        catch (Exception exception)
        {
            console.Error.WriteLine($"error: ERR001 {exception.GetType().Name}: {OneLine(exception.Message)} (details: {WriteDetails(exception)})");
            return ExitCode.Failed;
        }
    }

    private async Task<int> DispatchAsync(IReadOnlyList<string> arguments, CancellationToken cancellationToken)
    {
        if (arguments.Count == 0 || arguments[0] is "--help" or "-h" or "-?" or "help") return HelpWriter.WriteVerbs(console.Out);
        if (arguments[0] is "--version")
        {
            console.Out.WriteLine(Version);
            return ExitCode.Ok;
        }

        if (arguments[0].StartsWith("[suggest", StringComparison.Ordinal))
            return await CommandGrammar.Build().Parse(arguments).InvokeAsync(new InvocationConfiguration { Output = console.Out }, cancellationToken);

        var verb = Verb.All.FirstOrDefault(verb => verb.Name == arguments[0]) ?? throw UnknownVerb(arguments[0]);
        if (arguments.Skip(1).Any(word => word is "--help" or "-h" or "-?")) return HelpWriter.WriteOptions(console.Out, verb);
        var options = Parse(verb, arguments);
        var sink = options.Config.Output == "json" ? console.Error : console.Out; // JSON readers must not meet other lines
        foreach (var notice in options.Notices) sink.WriteLine($"note: {notice}");
        return await verb.Create(console).RunAsync(options, cancellationToken);
    }

    /// <summary>All that can be known without reading a model: options, files, environment, the args.json chain.</summary>
    private ParsedOptions Parse(Verb verb, IReadOnlyList<string> arguments)
    {
        string[] action = verb.Actions.Count == 0 ? [] : [TakeAction(verb, arguments)];
        var words = CommandGrammar.Cut(verb, [.. arguments.Take(1), .. arguments.Skip(1 + action.Length)]);
        if (!verb.TakesOptions)
            return new ParsedOptions(verb.Name, new TrainingConfig(), GivenOptions.None, words.Words, LaunchEnvironment.Read(environment), []);

        var (values, fileEnvironment) = OptionBinder.Read(words);
        if (values.Errors.Count > 0) throw new ConfigException(values.Errors);
        string? Variable(string name) => environment(name) is { Length: > 0 } set ? set : fileEnvironment.GetValueOrDefault(name);
        var launch = LaunchEnvironment.Read(Variable);
        var folders = CacheFolders.Read(Variable);
        var given = new GivenOptions(values.Values.Keys);
        var config = ConfigResolution.Complete(OptionCatalog.With(new TrainingConfig(), values.Values), verb.Name, given);
        config = new HubDatasets(folders).Resolve(config) with { DatasetCacheDir = config.DatasetCacheDir ?? folders.Own };
        return new ParsedOptions(verb.Name, config, given, action, launch, [.. values.Notices, .. OptionNotices.For(new GivenOptions(given.Names.Except(verb.FurtherOptions)), verb.Sections, verb.Name)]);
    }

    private static string TakeAction(Verb verb, IReadOnlyList<string> arguments)
    {
        var word = arguments.Count > 1 ? arguments[1] : "";
        if (verb.Actions.Contains(word)) return word;
        throw new ConfigException("CFG013", $"megatron {verb.Name} {word}".TrimEnd() + $" is not known; write megatron {verb.Name} {OptionValue.Alternatives(verb.Actions)}.");
    }

    private static ConfigException UnknownVerb(string word)
    {
        var names = Verb.All.Where(verb => !verb.IsHidden).Select(verb => verb.Name).ToArray();
        var near = Spelling.Nearest(word, names);
        return new("CFG013", near is null
            ? $"{word} is not a verb; use {OptionValue.Alternatives(names)}."
            : $"{word} is not a verb; did you mean {near}?");
    }

    private string WriteDetails(Exception exception)
    {
        var stamp = time.GetUtcNow().ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture);
        var path = Path.Combine(Path.GetTempPath(), $"megatron-{stamp}-{Environment.ProcessId}.log");
        try
        {
            File.WriteAllText(path, exception.ToString());
            return path;
        }
        catch (Exception failure) when (failure is IOException or UnauthorizedAccessException)
        {
            return $"not written, {OneLine(failure.Message)}"; // the first failure is what the user must see
        }
    }

    private static string OneLine(string text) => string.Join(' ', text.Split((char[])['\r', '\n'], StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries));
}
