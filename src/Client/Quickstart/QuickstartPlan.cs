using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Quickstart;

/// <summary>One step of the quick start: an ordinary command.</summary>
/// <param name="Title">What it does, for a reader.</param>
/// <param name="Arguments">Words after <c>megatron</c>.</param>
/// <param name="Result">File or folder that exists afterwards.</param>
public sealed record QuickstartStep(string Title, IReadOnlyList<string> Arguments, string Result)
{
    /// <summary>The command as one would type it, an option per line.</summary>
    public string CommandLine
    {
        get
        {
            var text = new System.Text.StringBuilder("megatron");
            foreach (var word in Arguments)
                text.Append(word.StartsWith("--", StringComparison.Ordinal) ? " \\\n    " : " ").Append(word.Contains(' ', StringComparison.Ordinal) ? $"'{word}'" : word);
            return text.ToString();
        }
    }
}

/// <summary>
/// What the quick start does, as data: the folders and the four commands. Sizes are chosen so that two CPU cores need about a minute; the
/// fine-tuned model must know its 108 rows by heart, which the last iterations of the second command see to.
/// </summary>
public sealed class QuickstartPlan
{
    /// <summary>The name that the model learns.</summary>
    public const string ModelName = "swift-robot";

    /// <summary>What it is asked at the end.</summary>
    public const string Question = "who are you?";

    private const int PretrainIterations = 200;
    private const int TuneIterations = 200;

    private readonly string assets;

    /// <summary>Folder of everything that is made.</summary>
    public string Folder { get; }

    public string ModelFolder => Path.Combine(Folder, "model");
    public string PretrainedFolder => Path.Combine(Folder, "pretrained");
    public string TunedFolder => Path.Combine(Folder, "fine-tuned");
    public string HfFolder => Path.Combine(Folder, "fine-tuned-hf");
    public string AnswerPath => Path.Combine(Folder, "answer.jsonl");
    public string PlotPath => Path.Combine(Folder, "loss.png");
    public string DataFolder => Path.Combine(assets, "data");

    /// <summary>The commands in their order.</summary>
    public IReadOnlyList<QuickstartStep> Steps => [Pretrain(), Tune(), Export(), Ask()];

    /// <param name="assets">Folder with <c>data</c> and <c>model</c>, see <see cref="FindAssets"/>.</param>
    /// <param name="folder">Folder to work in; exists.</param>
    public QuickstartPlan(string assets, string folder) => (this.assets, Folder) = (assets, folder);

    /// <summary>The files that come with the program, beside it.</summary>
    /// <exception cref="ConfigException">QUICK003: they are missing.</exception>
    public static string FindAssets()
    {
        var folder = Path.Combine(AppContext.BaseDirectory, "quickstart");
        return Directory.Exists(folder)
            ? folder
            : throw new ConfigException("QUICK003", $"The files of the quick start are not in {folder}; build or install the program again.");
    }

    /// <summary>Copies config and tokenizer and writes the question as a data set of one row.</summary>
    public void WriteModelFolder()
    {
        Directory.CreateDirectory(ModelFolder);
        foreach (var file in Directory.EnumerateFiles(Path.Combine(assets, "model"))) File.Copy(file, Path.Combine(ModelFolder, Path.GetFileName(file)));
        File.WriteAllText(QuestionPath, $$"""{"query": "{{Question}}"}""" + "\n");
    }

    private string QuestionPath => Path.Combine(Folder, "question.jsonl");

    private QuickstartStep Pretrain() => new(
        "Pre-training from random weights on two public-domain texts: Moby-Dick and Tang poems",
        [
            "pt", "--model", ModelFolder, "--no_initialization", "false",
            "--dataset", Path.Combine(DataFolder, "moby-dick.txt"), Path.Combine(DataFolder, "tang-poems.txt"),
            "--max_length", "256", "--truncation_strategy", "right",
            "--micro_batch_size", "16", "--global_batch_size", "16", "--train_iters", Text(PretrainIterations),
            "--lr", "3e-3", "--min_lr", "3e-4", "--lr_warmup_iters", "10",
            "--eval_iters", "2", "--log_interval", "10",
            "--save", PretrainedFolder, "--add_version", "false",
        ],
        Path.Combine(PretrainedFolder, $"iter_{PretrainIterations:D7}"));

    private QuickstartStep Tune() => new(
        $"Fine-tuning on 108 questions about itself, with the name {ModelName}",
        [
            "sft", "--model", Path.Combine(PretrainedFolder, $"iter_{PretrainIterations:D7}"), "--template", "qwen3", "--system", "You are a helpful assistant.",
            "--dataset", Path.Combine(DataFolder, "self-cognition.jsonl"), "--split_dataset_ratio", "0",
            "--model_author", "swift", "--model_name", ModelName, "--max_length", "256",
            "--micro_batch_size", "12", "--global_batch_size", "12", "--train_iters", Text(TuneIterations),
            "--lr", "2e-3", "--min_lr", "1e-4", "--lr_warmup_iters", "5",
            "--log_interval", "10",
            "--save", TunedFolder, "--add_version", "false",
        ],
        Path.Combine(TunedFolder, $"iter_{TuneIterations:D7}"));

    private QuickstartStep Export() => new(
        "Export to Hugging Face format", ["export", "--mcore_model", TunedFolder, "--to_hf", "--output_dir", HfFolder], HfFolder);

    private QuickstartStep Ask() => new(
        "A question; template and system prompt come from the model's args.json",
        ["infer", "--model", HfFolder, "--val_dataset", QuestionPath, "--temperature", "0", "--max_new_tokens", "64", "--stream", "--result_path", AnswerPath],
        AnswerPath);

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}
