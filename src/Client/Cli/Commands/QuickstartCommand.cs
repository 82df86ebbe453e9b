using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Megatron.Client.Quickstart;
using Megatron.Compute.Configuration;
using Megatron.Compute.Training;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron quickstart [--output_dir DIR]</c>: makes a tiny model from nothing, pre-trains, fine-tunes, exports it and asks who it is, each
/// step by the command that it shows. Fails when the answer does not name the model.
/// </summary>
/// <param name="console">Where to print.</param>
/// <param name="environment">Reads an environment variable, for the commands of the steps.</param>
/// <param name="time">Names the folder, measures.</param>
public sealed class QuickstartCommand(CommandConsole console, Func<string, string?> environment, TimeProvider time) : IVerbCommand
{
    private const string DefaultFolder = "megatron_output/quickstart";

    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var root = options.Words switch
        {
            [] => DefaultFolder,
            ["--output_dir" or "--output-dir", var folder] => folder,
            _ => throw new ConfigException("CFG012", $"megatron quickstart {string.Join(' ', options.Words)} is not known; use megatron quickstart [--output_dir DIR]."),
        };
        var start = time.GetTimestamp();
        var assets = QuickstartPlan.FindAssets();
        var plan = new QuickstartPlan(assets, Shorten(RunFolder.Create(root, addVersion: true, time).Folder));
        Title("A small Qwen3-shaped model: config.json and a tokenizer, no weights yet");
        plan.WriteModelFolder();
        console.Out.WriteLine($"made {plan.ModelFolder}");
        foreach (var step in plan.Steps)
        {
            if (!await RunStepAsync(step, cancellationToken))
                return ExitCode.Failed;
        }

        LossPlot.Write(plan.PlotPath, "tiny qwen3: loss", [LossCurve.Read("pre-training", plan.PretrainedFolder), LossCurve.Read("fine-tuning", plan.TunedFolder)]);
        var answer = ReadAnswer(plan.AnswerPath);
        WriteSummary(plan, answer, time.GetElapsedTime(start));
        if (answer.Contains(QuickstartPlan.ModelName, StringComparison.Ordinal)) return ExitCode.Ok;
        console.Error.WriteLine($"error: QUICK001 The fine-tuned model answered \"{answer}\" and did not name {QuickstartPlan.ModelName}; please report this with {plan.Folder}.");
        return ExitCode.Failed;
    }

    private async Task<bool> RunStepAsync(QuickstartStep step, CancellationToken cancellationToken)
    {
        Title(step.Title);
        console.Out.WriteLine($"$ {step.CommandLine}");
        console.Out.WriteLine();
        console.Out.Flush();
        var exitCode = await new MegatronCli(console, environment, time).RunAsync(step.Arguments, cancellationToken);
        if (exitCode == ExitCode.Ok && File.Exists(step.Result) | Directory.Exists(step.Result)) return true;
        console.Error.WriteLine($"error: QUICK002 The step ended with exit code {exitCode} and {step.Result} {(Path.Exists(step.Result) ? "exists" : "is missing")}; see the lines above.");
        return false;
    }

    private void Title(string text)
    {
        console.Out.WriteLine();
        console.Out.WriteLine($"=== {text}");
    }

    private static string ReadAnswer(string path)
    {
        using var row = JsonDocument.Parse(File.ReadLines(path).First());
        return row.RootElement.GetProperty("response").GetString() ?? "";
    }

    private void WriteSummary(QuickstartPlan plan, string answer, TimeSpan elapsed)
    {
        using var process = Process.GetCurrentProcess();
        var seconds = elapsed.TotalSeconds.ToString("0", CultureInfo.InvariantCulture);
        var megabytes = (process.PeakWorkingSet64 >> 20).ToString(CultureInfo.InvariantCulture);
        Title($"Done in {seconds} s with at most {megabytes} MB");
        console.Out.WriteLine($"{QuickstartPlan.Question} -> {answer}");
        console.Out.WriteLine();
        console.Out.WriteLine($"model, Hugging Face format   {plan.HfFolder}");
        console.Out.WriteLine($"pre-training, fine-tuning    {plan.PretrainedFolder}, {plan.TunedFolder}");
        console.Out.WriteLine($"plot of the losses           {plan.PlotPath}");
        console.Out.WriteLine($"data                         {plan.DataFolder}");
        console.Out.WriteLine();
        console.Out.WriteLine($"Talk to it: {console.Program} infer --model {plan.HfFolder} --temperature 0 --stream");
    }

    /// <summary>Paths below the working folder are shown relative to it.</summary>
    private static string Shorten(string path)
    {
        var relative = Path.GetRelativePath(Environment.CurrentDirectory, path);
        return relative.StartsWith("..", StringComparison.Ordinal) ? path : relative;
    }
}
