using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Training;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>What a run of 20 steps showed.</summary>
/// <param name="Losses">Mean loss of each step over all ranks.</param>
/// <param name="GradNorms">Before clipping.</param>
/// <param name="Weights">Final weights by Hugging Face name.</param>
/// <param name="BatchHashes">Hash of each global batch.</param>
public sealed record LayoutResult(double[] Losses, double[] GradNorms, IReadOnlyDictionary<string, float[]> Weights, ulong[] BatchHashes);

/// <summary>A part of the run, between checkpoints.</summary>
/// <param name="FirstStep">Steps that were done before.</param>
/// <param name="EndStep">Steps that are done at the end.</param>
/// <param name="Load">Checkpoint to begin with; null: the golden weights.</param>
/// <param name="SaveRoot">Root of a store that gets a checkpoint at the end; null: none is saved.</param>
public sealed record RunPart(int FirstStep, int EndStep, StoredCheckpoint? Load, string? SaveRoot);

/// <summary>Trains a golden model on its golden batches in any layout, the ranks being threads.</summary>
public static class LayoutRun
{
    /// <summary>Runs the 20 steps of the golden folder.</summary>
    /// <param name="model">Folder below the golden assets.</param>
    /// <param name="config">Layout and micro-batch size; the other hyperparameters are the folder's. With packing the golden rows are cut into samples of many lengths.</param>
    /// <param name="perTokenLoss">See <see cref="LossScaling"/>.</param>
    /// <exception cref="ConfigException">The layout does not fit.</exception>
    public static LayoutResult Run(string model, TrainingConfig config, int ranks, bool perTokenLoss) => Run(model, change: null, config, ranks, perTokenLoss, part: null);

    /// <summary>The same with a changed architecture: random weights, and the golden token ids spread over its vocabulary.</summary>
    public static LayoutResult Run(string model, Func<ModelConfig, ModelConfig>? change, TrainingConfig config, int ranks, bool perTokenLoss) =>
        Run(model, change, config, ranks, perTokenLoss, part: null);

    /// <summary>The first steps, with every collective holding up what its ranks do afterwards: see <see cref="ObservedWorld.InLockstep"/>.</summary>
    public static LayoutResult RunInLockstep(string model, TrainingConfig config, int ranks, bool perTokenLoss, int steps) =>
        Run(model, change: null, config, ranks, perTokenLoss, new RunPart(0, steps, null, null), ObservedWorld.InLockstep);

    /// <summary>The same for a part of the steps.</summary>
    public static LayoutResult Run(string model, TrainingConfig config, int ranks, bool perTokenLoss, RunPart part) => Run(model, change: null, config, ranks, perTokenLoss, part);

    private static LayoutResult Run(
        string model, Func<ModelConfig, ModelConfig>? change, TrainingConfig config, int ranks, bool perTokenLoss, RunPart? part, Func<IProcessGroupFactory, IProcessGroupFactory>? wrap = null)
    {
        var resolved = GoldenVerifier.Resolve(config with { Golden = Repository.Asset("golden", model) }, ranks) with { CalculatePerTokenLoss = perTokenLoss };
        var world = new LoopbackWorld(TimeSpan.FromMinutes(5));
        var results = new LayoutResult[ranks];
        var checkpoint = part is null ? null : new PartCheckpoint(part, resolved, ranks);
        RankThreads.Run(
            ranks, rank => results[rank] = RunRank(resolved, change, ranks, rank, wrap?.Invoke(world) ?? world, checkpoint), failure => world.Abort(failure.Message), TimeSpan.FromMinutes(5));
        Assert.All(results, result => Assert.Equal(results[0].BatchHashes, result.BatchHashes));
        Assert.All(results, result => Assert.Equal(results[0].GradNorms, result.GradNorms));
        return results[0];
    }

    private static LayoutResult RunRank(
        TrainingConfig config, Func<ModelConfig, ModelConfig>? change, int ranks, int rank, IProcessGroupFactory world, PartCheckpoint? checkpoint)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var golden = GoldenFile.Open(config.Golden ?? "");
        var goldenConfig = HfConfigReader.ReadFolder(golden.Folder).Model;
        var modelConfig = change?.Invoke(goldenConfig) ?? goldenConfig;
        using var parallel = ParallelState.Create(RunSettings.Dims(config, ranks), rank, world, config.SequenceParallel);
        var layouts = RunSettings.Partition(config, modelConfig).LayoutsOf(parallel.PipelineParallel.Rank);
        using var model = new ModelChunks(modelConfig, RunSettings.Model(config, CPU), parallel, layouts);
        if (change is null) ModelState.LoadWeights(model, golden.Folder, allowRandom: false, config.Seed);
        else ModelInitializer.Initialize(model.Parameters, modelConfig, config.Seed);
        using var trainer = new Trainer(model, parallel, CPU, RunSettings.Trainer(config));
        checkpoint?.Load(model, trainer);

        var (ids, shape) = golden.ReadIds("steps.input_ids");
        var (labels, _) = golden.ReadIds("steps.labels");
        foreach (var tokens in (long[][])[ids, labels])
            for (var i = 0; i < tokens.Length; i++)
                if (tokens[i] >= 0) tokens[i] = tokens[i] * (modelConfig.VocabSize - 1) / (goldenConfig.VocabSize - 1);
        var layout = BatchLayout.SingleRankUnpadded(config.MicroBatchSize) with
        {
            DataParallelRank = parallel.DataParallel.Rank,
            DataParallelSize = parallel.DataParallel.Size,
            PadSampleToMultiple = RowLayout.SampleMultiple(config.ContextParallelSize),
            PadRowToMultiple = RowLayout.RowMultiple(1, config.ContextParallelSize, config.SequenceParallel ? config.TensorModelParallelSize : 1),
        };
        var source = config.Packing
            ? PackedRows.Create(ids, labels, (int)shape[1], (int)shape[2], layout)
            : ArrayBatchSource.Create(ids, labels, (int)shape[1], (int)shape[2], layout);
        var schedule = RunSettings.LearningRate(config, shape[0]);
        var (losses, norms, hashes) = (new List<double>(), new List<double>(), new List<ulong>());
        for (var step = checkpoint?.Part.FirstStep ?? 0; step < (checkpoint?.Part.EndStep ?? shape[0]); step++)
        {
            var batch = source.Get(step);
            var metrics = trainer.TrainStep(batch, schedule.At(step + 1));
            var sums = HostValues.Sum(parallel.World, CPU, metrics.LossSum, metrics.TokenCount);
            losses.Add(sums[0] / sums[1]);
            norms.Add(metrics.Optimizer.GradNorm);
            hashes.Add(batch.Hash);
        }
        checkpoint?.Save(modelConfig, model, trainer, parallel);
        var weights = new Dictionary<string, float[]>();
        foreach (var tensor in HfTensorCatalog.Of(modelConfig))
            weights[tensor.Name] = Replicas.Gather(tensor.Name, tensor.Shape, model.Parameters, parameter => parameter.Data, parallel, CPU).data<float>().ToArray();
        return new LayoutResult([.. losses], [.. norms], weights, [.. hashes]);
    }
}
