using Megatron.Client.Cli.Commands;
using Megatron.Compute.Configuration;
using static Megatron.Compute.Configuration.OptionSection;

namespace Megatron.Client.Cli;

/// <summary>Does what a verb says.</summary>
public interface IVerbCommand
{
    /// <summary>Runs to the end and returns an <see cref="ExitCode"/>.</summary>
    /// <exception cref="ConfigException">Input that cannot be used; the caller prints it and exits with 2.</exception>
    Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken);
}

/// <summary>A word after <c>megatron</c>.</summary>
/// <param name="Name">The word.</param>
/// <param name="Summary">One line for the help.</param>
/// <param name="Sections">Chapters of options that it reads; empty when it reads words only.</param>
/// <param name="Create">Makes its command.</param>
public sealed record Verb(string Name, string Summary, IReadOnlySet<OptionSection> Sections, Func<CommandConsole, IVerbCommand> Create)
{
    private static readonly HashSet<OptionSection> NoSections = [];

    private static readonly HashSet<OptionSection> TrainingSections =
    [
        Base, Data, OptionSection.Template, Training, LearningRate, Regularisation, Checkpoint, Distributed, Logging, Evaluation, MixedPrecision,
        OptionSection.Model, Moe, MegatronTraining, Run,
    ];

    private static readonly HashSet<OptionSection> VerifySections = [.. TrainingSections, OptionSection.Verify];

    private static readonly HashSet<OptionSection> ExportSections =
        [Base, OptionSection.Template, Checkpoint, Distributed, MixedPrecision, OptionSection.Model, Moe, Run, OptionSection.Export];

    private static readonly HashSet<OptionSection> InferSections = [Base, Data, OptionSection.Template, Run, OptionSection.Infer];

    private static readonly HashSet<OptionSection> DataSections = [Base, Data, OptionSection.Template, Training, Evaluation, MegatronTraining, Run, OptionSection.Report];

    private static readonly HashSet<OptionSection> TokenizeSections = [Base, Data, OptionSection.Template, Run];

    /// <summary>All verbs in the order of the help.</summary>
    public static IReadOnlyList<Verb> All { get; } =
    [
        new("sft", "Fine-tune a model on messages.", TrainingSections, console => new TrainCommand(console)) { IsTraining = true },
        new("pt", "Continue pre-training on text.", TrainingSections, console => new TrainCommand(console)) { IsTraining = true },
        new("export", "Convert between Hugging Face folders and training checkpoints.", ExportSections, console => new ExportCommand(console)),
        new("checkpoint", "Inspect, verify or prune checkpoints.", NoSections, console => new CheckpointCommand(console, TimeProvider.System)),
        new("verify", "Compare this program with a golden folder.", VerifySections, console => new VerifyCommand(console)),
        new("benchmark", "Time the training step of a published model shape.", VerifySections, console => new BenchmarkCommand(console)),
        new("test", "Run the tests of a checkout.", NoSections, console => new CheckoutCommand(console, "use ./megatron test or dotnet test there")),
        new("infer", "Talk to a model, or let it answer a data set.", InferSections, console => new InferCommand(console, Console.In))
            { FurtherOptions = new HashSet<string> { "seed" } },
        new("tokenize", "Show the tokens and label masks of texts or rows.", TokenizeSections, console => new TokenizeCommand(console)),
        new("data", "Prepare data sets for training, look into them, report on them: prepare, inspect or stats.", DataSections, console => new DataCommand(console))
            { Actions = ["prepare", "inspect", "stats"] },
        new("quickstart", "Train a tiny model from nothing to see everything work.", NoSections,
            console => new QuickstartCommand(console, Environment.GetEnvironmentVariable, TimeProvider.System)),
        new("silo", "Host the devices of this node for a cluster.", NoSections, console => new SiloCommand(console))
            { WordOptions = SiloCommand.Options, Usage = "megatron silo --cluster redis://host:port [--option value ...]" },
        new("jobs", "List, follow and stop jobs of a cluster.", NoSections, console => new JobsCommand(console, TimeProvider.System))
            { WordOptions = JobsCommand.Options, Usage = JobsCommand.Usage },
        new("cluster", "Show the silos of a cluster and their devices.", NoSections, console => new ClusterCommand(console, TimeProvider.System))
            { WordOptions = ClusterCommand.Options, Usage = ClusterCommand.Usage },
        new("faults", "Break clusters of real processes and measure how they come back.", NoSections,
            console => new CheckoutCommand(console, "use ./megatron faults bench there")),
        new("completion", "Print a completion script: bash or zsh.", NoSections, console => new CompletionCommand(console)),
        new("docs", "Print generated documentation: parameters.", NoSections, console => new DocsCommand(console)) { IsHidden = true },
    ];

    /// <summary>True for sft and pt, where <c>output_dir</c> means <c>save</c> and <c>mcore_model</c> means <c>load</c>.</summary>
    public bool IsTraining { get; init; }

    /// <summary>Words of which one must follow the verb; empty for most verbs.</summary>
    public IReadOnlyList<string> Actions { get; init; } = [];

    /// <summary>Options outside <see cref="Sections"/> that it reads too.</summary>
    public IReadOnlySet<string> FurtherOptions { get; init; } = new HashSet<string>();

    /// <summary>Options of a verb that describes no run; it gets its words as they are.</summary>
    public IReadOnlyList<WordOption> WordOptions { get; init; } = [];

    /// <summary>How such a verb is called.</summary>
    public string Usage { get; init; } = "";

    /// <summary>True when the help does not list it.</summary>
    public bool IsHidden { get; init; }

    /// <summary>True when it takes options; otherwise it gets all words as they are.</summary>
    public bool TakesOptions => Sections.Count > 0;
}
