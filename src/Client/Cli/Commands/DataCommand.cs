using System.Diagnostics;
using System.Globalization;
using Megatron.Client.Reports;
using Megatron.Compute.Data;
using Megatron.Compute.Tokenization;
using Megatron.Compute.Training;

namespace Megatron.Client.Cli.Commands;

/// <summary>
/// <c>megatron data</c>: <c>prepare</c> encodes data sets so that later runs start at once, <c>inspect</c> shows samples with what is learned of
/// them, <c>stats</c> tells lengths, rows left out and packing; the last two write a report as HTML and PNG with <c>--report_path</c>. Options of the
/// encoding are those of sft, and of pt with <c>--use_chat_template false</c>: the same options find the same prepared data.
/// </summary>
/// <param name="console">Where to print.</param>
public sealed class DataCommand(CommandConsole console) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var (config, model) = RunPreparation.CheckData(options.Config, options.Given);
        var start = Stopwatch.GetTimestamp();
        var tokenizer = HfTokenizer.Load(config.Tokenizer ?? ModelFolder.Find(config));
        var loaded = Stopwatch.GetElapsedTime(start);
        using var data = DatasetBuilder.Build(
            config, tokenizer, ChatTemplates.Get(config.Template ?? "default"), model.VocabSize, console.Out.WriteLine, cancellationToken);
        var time = Stopwatch.GetElapsedTime(start) - loaded;
        foreach (var line in data.Report) console.Out.WriteLine(line);
        switch (options.Words[0])
        {
            case "prepare":
                using (var process = Process.GetCurrentProcess())
                    console.Out.WriteLine(string.Create(CultureInfo.InvariantCulture,
                        $"prepared below {config.DatasetCacheDir} in {time.TotalSeconds:F2} s (the tokenizer took {loaded.TotalSeconds:F2} s more), {process.TotalProcessorTime.TotalSeconds:F2} s of processor time in all, at most {process.PeakWorkingSet64 >> 20} MiB resident"));
                break;
            case "inspect":
                for (var i = 0; i < Math.Min(config.ShowSamples, data.TrainSamples.Count); i++)
                    console.Out.WriteLine($"--- sample {i}\n{SamplePrinter.Print(data.TrainSamples[i], tokenizer)}");
                break;
            default:
                foreach (var line in DatasetStatistics.Of(data.TrainSamples).Lines()) console.Out.WriteLine(line);
                break;
        }
        if (config.ReportPath is { } path && options.Words[0] != "prepare")
        {
            DataReport.Write(path, data, tokenizer, config.ShowSamples);
            console.Out.WriteLine($"report: {path}");
        }
        return Task.FromResult(ExitCode.Ok);
    }
}
