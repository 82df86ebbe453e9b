using System.Globalization;
using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// A rank's side of saving: writes its part, sends the receipt, and, on rank 0, commits when the control plane holds all receipts. A disk
/// that fails costs the save, not the run.
/// </summary>
public sealed class CheckpointSaver
{
    private static readonly TimeSpan CommitTimeout = TimeSpan.FromMinutes(10);
    private const int FailuresBeforeAlarm = 3;

    private readonly StartRank start;
    private readonly CheckpointStore store;
    private readonly string modelFolder;
    private int failuresInARow;

    /// <param name="time">Clock of the store.</param>
    /// <param name="modelFolder">Where config.json, generation_config.json and the tokenizer are copied from.</param>
    public CheckpointSaver(StartRank start, TrainingConfig config, TimeProvider time, string modelFolder)
    {
        (this.start, this.modelFolder) = (start, modelFolder);
        store = new CheckpointStore(config.Save ?? throw new InvalidOperationException("The run has no folder."), time);
        if (start.Rank == 0) store.CollectGarbage(start.Attempt.Attempt);
    }

    /// <summary>
    /// Saves the run as it stands after the newest step. Entered by all ranks together; all leave with the same answer, so that none goes on
    /// counting on a checkpoint that another has given up.
    /// </summary>
    /// <returns>Whether it was committed, and a stop command that reached rank 0 meanwhile.</returns>
    public (bool IsCommitted, StopRank? Stop) Save(RankSetup rank, RankLink link)
    {
        var (world, device) = (rank.Parallel.World, rank.Device);
        var saveId = string.Create(CultureInfo.InvariantCulture, $"{rank.Progress.Iteration}");
        if (link.Rank == 0) link.Notice($"saving checkpoint at iteration {rank.Progress.Iteration,7} to {store.Root} in torch_dist format");
        var part = Attempt(rank, link, () => Write(rank, saveId));
        if (HostValues.Any(world, device, part is null)) return (false, null);

        link.Report(new CheckpointReceipt(link.Attempt, link.Rank, saveId, rank.Progress.Iteration, part?.Files ?? [], part?.ManifestPart ?? ""));
        StopRank? stop = null;
        var committed = link.Rank == 0 && Attempt(rank, link, () => AwaitCommit(rank, link, saveId, ref stop)) is not null;
        var isCommitted = HostValues.FromFirst(world, device, committed ? 1 : 0) == 1;
        if (isCommitted) failuresInARow = 0;
        return (isCommitted, stop);
    }

    /// <summary>A disk that fails is a notice to the user and null; anything else ends the rank.</summary>
    private T? Attempt<T>(RankSetup rank, RankLink link, Func<T> write) where T : class
    {
        try
        {
            return write();
        }
        catch (IOException e)
        {
            failuresInARow++;
            var alarm = failuresInARow >= FailuresBeforeAlarm ? $" ({failuresInARow} saves in a row have failed)" : "";
            link.Notice($"The checkpoint of iteration {rank.Progress.Iteration} was not saved{alarm}: {e.Message} Training goes on.", RankNoticeLevel.Warning);
            return null;
        }
    }

    private RankPart Write(RankSetup rank, string saveId)
    {
        using var scope = NewDisposeScope();
        var config = rank.Config;
        var plan = ModelPlan(rank.ModelConfig, config);
        var state = config.NoSaveOptim ? [] : StateSlice.OfOptimizer([.. rank.Trainer.Optimizer.State.Where(range => Replicas.SpeaksForState(range.Parameter, rank.Parallel, config.UseDistributedOptimizer))], withDuplicates: false);
        var content = new RankContent
        {
            ModelPlan = plan,
            Weights = WeightBlock.OfParameters(rank.Model.Parameters.Where(parameter => Replicas.SpeaksForWeight(parameter, rank.Parallel))),
            State = state,
            SideFiles = start.Rank == 0 ? SideFiles(rank) : null,
        };
        var sizeBytes = plan.Shards.Sum(shard => shard.Tensors.Sum(tensor => tensor.SizeBytes)) + CheckpointWriter.StateBytes(state) * start.WorldSize;
        var folder = store.BeginSave(start.Attempt.Attempt, saveId, sizeBytes);
        return CheckpointWriter.WriteRank(folder, start.Rank, content);
    }

    private StoredCheckpoint AwaitCommit(RankSetup rank, RankLink link, string saveId, ref StopRank? stop)
    {
        while (true)
        {
            var command = link.Take(CommitTimeout, $"the commit of checkpoint {saveId}");
            if (command is StopRank asked) stop = asked;
            if (command is not CommitCheckpoint commit || commit.SaveId != saveId) continue;
            var parts = commit.Receipts.Select(receipt => new RankPart(receipt.Rank, receipt.Files, receipt.ManifestPart)).ToArray();
            var committed = store.Commit(saveId, Facts(rank), parts);
            if (rank.Config.SaveTotalLimit is { } limit) store.Prune(limit);
            link.Report(new CheckpointCommitted(link.Attempt, link.Rank, saveId, rank.Progress.Iteration, committed.Folder));
            return committed;
        }
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

    private RunFacts Facts(RankSetup rank)
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
}
