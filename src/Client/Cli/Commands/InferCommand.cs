using Megatron.Client.Chat;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Inference;
using Megatron.Compute.Native;
using TorchSharp;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron infer</c>: talk to a model, or let it answer a data set.</summary>
/// <param name="console">Where to print.</param>
/// <param name="input">What the user types.</param>
public sealed class InferCommand(CommandConsole console, TextReader input) : IVerbCommand
{
    /// <inheritdoc/>
    public Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var config = options.Config;
        if (config is { Stream: true, NumBeams: > 1 })
            throw new ConfigException("CFG006", $"--stream does not go with --num_beams = {config.NumBeams}; leave one of them out.");
        RequireOneRank(config);
        ConfigValidator.ThrowIfInvalid(config, model: null, worldSize: 1);
        var folder = ModelSource.Find(config.Model, TimeProvider.System, console.Out.WriteLine);
        var report = new List<string>();
        var isBatch = config.Dataset.Count + config.ValDataset.Count > 0;
        var rows = isBatch ? PromptRows.Read(config, report) : [];
        foreach (var line in report) console.Out.WriteLine(line);

        LibTorch.Load(new LibTorchOptions { Folder = options.Environment.LibTorch });
        torch.set_num_threads(Environment.ProcessorCount);
        using var model = ChatModel.Load(config, folder, line => console.Out.WriteLine("warning: " + line));
        using var results = new ResultFile(config.ResultPath, config.Model ?? folder, TimeProvider.System);
        if (isBatch)
        {
            var batch = new BatchAnswers(model, console.Out, results, TimeProvider.System);
            batch.Run(rows, config.MaxBatchSize, config.Stream, cancellationToken);
            if (config.Metric == "acc") batch.WriteAccuracy(rows.Count);
        }
        else
        {
            var number = 0L;
            new ChatSession(
                input, console.Out, (conversation, onText) => model.Answer(
                    [conversation], number++, onText is null ? null : (_, text) => onText(text), cancellationToken)[0].Text, results, config.Stream).Run();
        }
        if (File.Exists(results.Path)) console.Out.WriteLine($"answers: {results.Path}");
        return Task.FromResult(ExitCode.Ok);
    }

    /// <summary>Whoever gave a layout expects it to act; here it cannot.</summary>
    private static void RequireOneRank(TrainingConfig config)
    {
        (string Name, int Size)[] sizes =
        [
            ("tensor_model_parallel_size", config.TensorModelParallelSize), ("pipeline_model_parallel_size", config.PipelineModelParallelSize),
            ("context_parallel_size", config.ContextParallelSize), ("expert_model_parallel_size", config.ExpertModelParallelSize),
        ];
        var errors = sizes.Where(size => size.Size != 1).Select(size => new ConfigError(
            "CFG006", FormattableString.Invariant($"--{size.Name} = {size.Size} does not go with megatron infer, which runs on one rank; leave it out."))).ToArray();
        if (errors.Length > 0) throw new ConfigException(errors);
    }
}
