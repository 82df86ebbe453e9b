using Megatron.Compute.Configuration;
using Spectre.Console;

namespace Megatron.Client.Cli;

/// <summary>The help: verbs, and the options of a verb by chapter.</summary>
public static class HelpWriter
{
    /// <summary>Titles of the chapters.</summary>
    public static string Title(OptionSection section) => section switch
    {
        OptionSection.Base => "Model and base",
        OptionSection.LearningRate => "Learning rate",
        OptionSection.MixedPrecision => "Mixed precision",
        OptionSection.Model => "Model architecture",
        OptionSection.Moe => "Mixture of experts",
        OptionSection.MegatronTraining => "Data form and length of the run",
        OptionSection.Run => "Where to run",
        OptionSection.Infer => "Inference",
        OptionSection.Report => "Reports on data",
        _ => section.ToString(),
    };

    /// <summary>The kind of value, as help and documentation write it.</summary>
    public static string Kind(OptionInfo option) => option.Choices.Count > 0
        ? string.Join('|', option.Choices) + (option.Kind == OptionKind.TextList ? " …" : "")
        : option.Kind switch
        {
            OptionKind.Flag => "true|false",
            OptionKind.Integer => "whole number",
            OptionKind.Number => "number",
            OptionKind.Json => "JSON or file",
            OptionKind.TextList => "text …",
            OptionKind.NumberList => "number …",
            _ => "text",
        };

    /// <summary>The default, or where it comes from.</summary>
    public static string Default(OptionInfo option)
    {
        var value = option.Format(option.Default);
        return value.Length > 0 ? value : option.DefaultFrom.Length > 0 ? $"from {option.DefaultFrom}" : "";
    }

    /// <summary>Lists the verbs.</summary>
    public static int WriteVerbs(TextWriter writer)
    {
        writer.WriteLine("Trains large language models from .NET.");
        writer.WriteLine();
        writer.WriteLine("usage: megatron <verb> [config.yaml|config.json] [--option value ...] [@file]");
        writer.WriteLine();
        foreach (var verb in Verb.All.Where(verb => !verb.IsHidden)) writer.WriteLine($"  {verb.Name,-12}{verb.Summary}");
        writer.WriteLine();
        writer.WriteLine("megatron <verb> --help lists the options of a verb; megatron --version prints the version.");
        return ExitCode.Ok;
    }

    /// <summary>Lists the options of a verb.</summary>
    public static int WriteOptions(TextWriter writer, Verb verb)
    {
        var console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(writer) });
        if (ReferenceEquals(writer, Console.Out) && !Console.IsOutputRedirected) console.Profile.Width = Math.Max(Console.WindowWidth, 80);
        else console.Profile.Width = 140;
        console.WriteLine($"megatron {verb.Name}: {verb.Summary}");
        if (!verb.TakesOptions) return WriteWordOptions(writer, verb);
        console.WriteLine("Names may be written with _ or -; flags may stand alone; lists are separated by spaces; the last of several values wins.");
        foreach (var section in OptionCatalog.All.Where(option => verb.Sections.Contains(option.Section) || verb.FurtherOptions.Contains(option.Name)).GroupBy(option => option.Section))
        {
            var table = new Table { Border = TableBorder.None, ShowHeaders = false, Expand = true };
            table.AddColumn(new TableColumn("option") { Width = 40, NoWrap = true }).AddColumn(new TableColumn("default") { Width = 24 }).AddColumn("help");
            foreach (var option in section) table.AddRow(Cell("  --" + option.Name), Cell(Default(option)), Cell(Help(option, verb)));
            console.WriteLine();
            console.Write(new Markup($"[bold]{Markup.Escape(Title(section.Key))}[/]"));
            console.WriteLine();
            console.Write(table);
        }

        return ExitCode.Ok;
    }

    private static int WriteWordOptions(TextWriter writer, Verb verb)
    {
        if (verb.Usage.Length > 0) writer.WriteLine($"usage: {verb.Usage}");
        foreach (var option in verb.WordOptions)
            writer.WriteLine($"  {$"--{option.Name} {option.Value}".TrimEnd(),-32} {option.Help}");
        return ExitCode.Ok;
    }

    private static Text Cell(string text) => new(text);

    private static string Help(OptionInfo option, Verb verb)
    {
        var names = option.Aliases.Concat(verb.IsTraining ? option.TrainingAliases : []).ToArray();
        var help = $"{option.Help} [{Kind(option)}]";
        return names.Length == 0 ? help : $"{help} Also --{string.Join(", --", names)}.";
    }
}
