using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;

namespace Megatron.Compute.Training;

/// <summary>What a rank puts into a checkpoint, and the facts of the run that rank 0 adds.</summary>
internal sealed class CheckpointContent(StartRank start, string modelFolder)
{
    private ReplicaShares? shares;

    /// <summary>This rank's weights and state; the views belong to the dispose scope that is open.</summary>
    /// <returns>The content, and the bytes of the whole checkpoint.</returns>
    public (RankContent Content, long SizeBytes) Of(RankSetup rank)
    {
        var config = rank.Config;
        var plan = ModelPlan(rank.ModelConfig, config);
        var writer = shares ??= new ReplicaShares(rank.Model.Parameters, rank.Parallel);
        var state = config.NoSaveOptim ? [] : rank.Trainer.Optimizer.State.Where(range => writer.WritesState(range.Parameter, config.UseDistributedOptimizer)).ToList();
        var slices = StateSlice.OfOptimizer(state, withDuplicates: false);
        var content = new RankContent
        {
            ModelPlan = plan,
            WritesWeights = config.SaveSafetensors,
            Weights = config.SaveSafetensors ? WeightBlock.OfParameters(rank.Model.Parameters.Where(writer.WritesWeight), withDuplicates: false) : [],
            State = slices,
            SideFiles = start.Rank == 0 ? SideFiles(rank) : null,
        };
        var weightBytes = config.SaveSafetensors ? plan.TotalBytes : 0;
        return (content, weightBytes + CheckpointWriter.StateBytes(slices) * start.WorldSize);
    }

    /// <summary>Where the run stands, and its settings.</summary>
    public RunFacts Facts(RankSetup rank)
    {
        var (config, dims) = (rank.Config, rank.Parallel.Dims);
        return new RunFacts
        {
            JobId = start.Attempt.JobId,
            Attempt = start.Attempt.Attempt,
            ModelConfig = ConfigFacts.Of(rank.ModelConfig),
            TokenizerHash = ConfigFacts.TokenizerHash(config.Tokenizer ?? modelFolder),
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
            Trainer = rank.Trainer.Capture(rank.Progress, config.NoSaveRng ? null : (ulong)config.Seed, rank.TrainSource.PlanHash),
            Optimizer = config.NoSaveOptim ? new Dictionary<string, string>() : ConfigFacts.Of(RunSettings.Trainer(config).Optimizer),
            Schedule = config.NoSaveOptim ? new Dictionary<string, string>() : ConfigFacts.Of(RunSettings.LearningRateOptions(config, rank.Data.TrainIters)),
        };
    }

    private static HfShardPlan ModelPlan(ModelConfig model, TrainingConfig config)
    {
        var dtype = TensorBytes.ToSafetensors(RunSettings.ModelDType(config));
        return HfShardPlan.Make(
            [.. HfTensorCatalog.Of(model).Select(tensor => new SafetensorsSpec(tensor.Name, dtype, tensor.Shape))], HfShardPlan.ParseSize(config.MaxShardSize));
    }

    private HfSideFiles SideFiles(RankSetup rank) => new()
    {
        Config = HfConfigWriter.Write(File.ReadAllBytes(Path.Combine(modelFolder, "config.json")), rank.ModelConfig, rank.Config.TorchDtype),
        GenerationConfig = ReadIfThere(Path.Combine(modelFolder, "generation_config.json")),
        Args = Encoding.UTF8.GetBytes(ArgsFile.WithoutSecrets(rank.Config).ToJson()),
        TokenizerFolder = rank.Config.Tokenizer ?? modelFolder,
    };

    private static byte[]? ReadIfThere(string path) => File.Exists(path) ? File.ReadAllBytes(path) : null;
}
