using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Training.Snapshots;

namespace Megatron.Compute.Training;

/// <summary>What a rank puts into a checkpoint, and the facts of the run that rank 0 adds.</summary>
internal sealed class CheckpointContent(StartRank start, string modelFolder)
{
    private ReplicaShares? shares;
    private HfSideFiles? sideFiles;
    private Lazy<string?>? tokenizerHash;

    /// <summary>This rank's weights and state; the views belong to the dispose scope that is open.</summary>
    /// <returns>The content, and the bytes of the whole checkpoint.</returns>
    public (RankContent Content, long SizeBytes) Of(RankSetup rank)
    {
        var config = rank.Config;
        var plan = ModelPlan(rank.ModelConfig, config);
        var slices = config.NoSaveOptim ? [] : StateOf(rank);
        var content = new RankContent
        {
            ModelPlan = plan,
            WritesWeights = config.SaveSafetensors,
            Weights = config.SaveSafetensors ? WeightBlock.OfParameters(rank.Model.Parameters.Where(SharesOf(rank).WritesWeight), withDuplicates: false) : [],
            State = slices,
            SideFiles = start.Rank == 0 ? SideFiles(rank) : null,
        };
        var weightBytes = config.SaveSafetensors ? plan.TotalBytes : 0;
        return (content, weightBytes + CheckpointWriter.StateBytes(slices) * start.WorldSize);
    }

    /// <summary>This rank's part of the optimizer's state; the views belong to the dispose scope that is open.</summary>
    public IReadOnlyList<StateSlice> StateOf(RankSetup rank)
    {
        var writer = SharesOf(rank);
        return StateSlice.OfOptimizer(
            [.. rank.Trainer.Optimizer.State.Where(range => writer.WritesState(range.Parameter, rank.Config.UseDistributedOptimizer))], withDuplicates: false);
    }

    /// <summary>
    /// What a snapshot in memory is. It leaves out nothing, whatever the options leave out of a checkpoint: the run goes on from it as if nothing had
    /// happened.
    /// </summary>
    public SnapshotRun RunOf(RankSetup rank) => new()
    {
        Facts = Facts(rank, withOptimizer: true, withRandomState: true),
        WorldSize = start.WorldSize,
        Root = rank.Config.Save ?? throw new InvalidOperationException("The run has no folder."),
        ModelPlan = ModelPlan(rank.ModelConfig, rank.Config),
        SideFiles = SideFiles(rank),
    };

    /// <summary>The same where the run stands now.</summary>
    public static SnapshotRun RunAfterStep(SnapshotRun run, RankSetup rank) =>
        run with { Facts = run.Facts with { Trainer = Capture(rank, withRandomState: true) } };

    /// <summary>Where the run stands, and its settings, as the options want them saved.</summary>
    public RunFacts Facts(RankSetup rank) => Facts(rank, !rank.Config.NoSaveOptim, !rank.Config.NoSaveRng);

    private RunFacts Facts(RankSetup rank, bool withOptimizer, bool withRandomState)
    {
        var (config, dims) = (rank.Config, rank.Parallel.Dims);
        return new RunFacts
        {
            JobId = start.Attempt.JobId,
            Attempt = start.Attempt.Attempt,
            ModelConfig = ConfigFacts.Of(rank.ModelConfig),
            TokenizerHash = (tokenizerHash ??= new Lazy<string?>(ConfigFacts.TokenizerHash(config.Tokenizer ?? modelFolder))).Value,
            Layout = new CheckpointLayout
            {
                TensorParallel = dims.TensorParallelSize,
                PipelineParallel = dims.PipelineParallelSize,
                VirtualPipeline = rank.Model.Chunks.Count,
                ContextParallel = dims.ContextParallelSize,
                ExpertParallel = dims.ExpertParallelSize,
                DataParallel = dims.DataParallelSize,
                LogicalDataShards = config.LogicalDataShards ?? 1,
            },
            GlobalBatchSize = config.GlobalBatchSize,
            MicroBatchSize = config.MicroBatchSize,
            Trainer = Capture(rank, withRandomState),
            Optimizer = !withOptimizer ? new Dictionary<string, string>() : ConfigFacts.Of(RunSettings.Trainer(config).Optimizer),
            Schedule = !withOptimizer ? new Dictionary<string, string>() : ConfigFacts.Of(RunSettings.LearningRateOptions(config, rank.Data.TrainIters)),
        };
    }

    private static TrainerState Capture(RankSetup rank, bool withRandomState) =>
        rank.Trainer.Capture(rank.Progress, withRandomState ? (ulong)rank.Config.Seed : null, rank.TrainSource.PlanHash);

    private ReplicaShares SharesOf(RankSetup rank) => shares ??= new ReplicaShares(rank.Model.Parameters, rank.Parallel);

    private static HfShardPlan ModelPlan(ModelConfig model, TrainingConfig config)
    {
        var dtype = TensorBytes.ToSafetensors(RunSettings.ModelDType(config));
        return HfShardPlan.Make(
            [.. HfTensorCatalog.Of(model).Select(tensor => new SafetensorsSpec(tensor.Name, dtype, tensor.Shape))], HfShardPlan.ParseSize(config.MaxShardSize));
    }

    // The same in every save, and read from the model's folder once: it may be far away, or gone by then.
    private HfSideFiles SideFiles(RankSetup rank) => sideFiles ??= new()
    {
        Config = HfConfigWriter.Write(File.ReadAllBytes(Path.Combine(modelFolder, "config.json")), rank.ModelConfig, rank.Config.TorchDtype),
        GenerationConfig = ReadIfThere(Path.Combine(modelFolder, "generation_config.json")),
        Args = Encoding.UTF8.GetBytes(ArgsFile.WithoutSecrets(rank.Config).ToJson()),
        TokenizerFolder = rank.Config.Tokenizer ?? modelFolder,
    };

    private static byte[]? ReadIfThere(string path) => File.Exists(path) ? File.ReadAllBytes(path) : null;
}
