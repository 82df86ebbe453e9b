using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Training;
using static TorchSharp.torch;

namespace Megatron.Parity.Tests;

/// <summary>Loads and saves the state of a run whose ranks are threads: what <see cref="CheckpointSaver"/> does, without a control plane.</summary>
internal sealed class PartCheckpoint(RunPart part, TrainingConfig config, int ranks)
{
    private const string SaveId = "part";

    private readonly RankPart[] written = new RankPart[ranks];

    public RunPart Part => part;

    /// <summary>Weights, masters, moments and counters of the checkpoint.</summary>
    public void Load(ModelChunks model, Trainer trainer)
    {
        if (part.Load is not { } checkpoint) return;
        using var scope = NewDisposeScope();
        using var reader = new CheckpointReader(checkpoint);
        reader.LoadWeights(WeightBlock.OfParameters(model.Parameters, withDuplicates: true));
        trainer.Optimizer.CopyModelToMasters();
        reader.LoadState(StateSlice.OfOptimizer(trainer.Optimizer.State, withDuplicates: true));
        trainer.Restore(reader.Manifest.Run.Trainer);
    }

    /// <summary>Every rank writes its share; the first commits. Entered by all.</summary>
    public void Save(ModelConfig modelConfig, ModelChunks model, Trainer trainer, ParallelState parallel)
    {
        if (part.SaveRoot is not { } root) return;
        using var scope = NewDisposeScope();
        var store = new CheckpointStore(root, TimeProvider.System);
        var shares = new ReplicaShares(model.Parameters, parallel);
        var dtype = SafetensorsDType.F32;
        var content = new RankContent
        {
            ModelPlan = HfShardPlan.Make([.. HfTensorCatalog.Of(modelConfig).Select(tensor => new SafetensorsSpec(tensor.Name, dtype, tensor.Shape))], 100_000),
            Weights = WeightBlock.OfParameters(model.Parameters.Where(shares.WritesWeight), withDuplicates: false),
            State = StateSlice.OfOptimizer([.. trainer.Optimizer.State.Where(range => shares.WritesState(range.Parameter, config.UseDistributedOptimizer))], withDuplicates: false),
            SideFiles = parallel.World.Rank == 0 ? new HfSideFiles { Config = "{}"u8.ToArray() } : null,
        };
        written[parallel.World.Rank] = CheckpointWriter.WriteRank(store.BeginSave(1, SaveId, 1 << 20), parallel.World.Rank, content);
        HostValues.Any(parallel.World, CPU, false); // all have written
        if (parallel.World.Rank == 0) store.Commit(SaveId, Facts(modelConfig, trainer), written);
        HostValues.Any(parallel.World, CPU, false);
    }

    private RunFacts Facts(ModelConfig modelConfig, Trainer trainer) => new()
    {
        JobId = "parity",
        Attempt = 1,
        ModelConfig = ConfigFacts.Of(modelConfig),
        TokenizerHash = null,
        Layout = CheckpointLayout.SingleRank,
        GlobalBatchSize = config.GlobalBatchSize,
        MicroBatchSize = config.MicroBatchSize,
        Optimizer = new Dictionary<string, string>(),
        Schedule = new Dictionary<string, string>(),
        Trainer = trainer.Capture(new RunProgress(part.EndStep, 0, 0), (ulong)config.Seed, 0),
    };
}
