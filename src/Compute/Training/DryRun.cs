using System.Globalization;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Models;
using Megatron.Compute.PipelineParallel;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Training;

/// <summary>What <c>--dry_run</c> prints: the resolved options, the data as they would be trained on, length and memory of the run.</summary>
public static class DryRun
{
    private const double BytesPerMebibyte = 1 << 20;

    /// <summary>Reads and encodes the data; touches no device and writes nothing.</summary>
    /// <param name="run">A checked run.</param>
    /// <param name="worldSize">Ranks of the job.</param>
    /// <exception cref="ConfigException">The tokenizer or the data cannot be used.</exception>
    public static IReadOnlyList<string> Describe(PreparedRun run, int worldSize)
    {
        var config = run.Config;
        var tokenizer = HfTokenizer.Load(config.Tokenizer ?? ModelFolder.Find(config));
        // Without a folder for prepared data nothing stays behind.
        using var data = DatasetBuilder.Build(config with { DatasetCacheDir = null }, tokenizer, ChatTemplates.Get(config.Template ?? "default"), run.Model.VocabSize);
        var numParameters = HfTensorCatalog.Of(run.Model).Sum(tensor => tensor.Shape.Aggregate(1L, (product, size) => product * size));
        var weightBytes = config.TorchDtype == "float32" ? 4 : 2;

        // Weights in the training dtype, fp32 gradients, fp32 masters where the weights are not fp32, one or two fp32 moments.
        var bytesPerParameter = weightBytes + 4 + (weightBytes == 4 ? 0 : 4) + (config.Optimizer == "sgd" ? 4 : 8);
        return
        [
            ArgsFile.WithoutSecrets(config).ToJson(),
            .. run.Notices,
            .. data.Report,
            string.Create(CultureInfo.InvariantCulture, $"plan: {data.LastIteration} iterations of {config.GlobalBatchSize} samples on {worldSize} rank(s), {data.EvalIters} batches per evaluation, " +
                $"a checkpoint every {config.SaveInterval} iterations below {run.Folder}"),
            string.Create(CultureInfo.InvariantCulture, $"model: {numParameters} parameters; weights, gradients and optimizer take {numParameters * bytesPerParameter / BytesPerMebibyte:F1} MiB over all " +
                $"ranks, activations come on top"),
            .. Pipeline(run, worldSize),
            "dry run: nothing was written.",
        ];
    }

    /// <summary>The schedule of a step; nothing without pipelining.</summary>
    private static IReadOnlyList<string> Pipeline(PreparedRun run, int worldSize)
    {
        var config = run.Config;
        if (config.PipelineModelParallelSize == 1) return [];
        var numMicroBatches = config.GlobalBatchSize / (config.MicroBatchSize * RunSettings.Dims(config, worldSize).DataParallelSize);
        return PipelineDiagram.Draw(RunSettings.Trainer(config).Schedule, RunSettings.Partition(config, run.Model).Shape, numMicroBatches);
    }
}
