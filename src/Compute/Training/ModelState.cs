using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>Where a run's first state may come from.</summary>
/// <param name="Config">Resolved configuration.</param>
/// <param name="Model">Architecture.</param>
/// <param name="ModelFolder">Hugging Face folder of <c>--model</c>.</param>
/// <param name="LoadFolder">Checkpoint named by the control plane (recovery); wins over <c>--load</c>.</param>
/// <param name="Time">Clock of the checkpoint store.</param>
/// <param name="Parallel">Ranks that load together.</param>
/// <param name="Device">Where the rank's tensors live.</param>
public sealed record ModelStateRequest(
    TrainingConfig Config, ModelConfig Model, string ModelFolder, string? LoadFolder, TimeProvider Time, ParallelState Parallel, Device Device);

/// <summary>
/// The state a run begins with: a checkpoint with everything, the weights of a checkpoint, a Hugging Face folder, or random weights, in this
/// order of preference.
/// </summary>
/// <param name="Progress">Where the run stands.</param>
/// <param name="DataPlanHash">Hash of the data plan the checkpoint was written under; null for a fresh start.</param>
public sealed record ModelState(RunProgress Progress, ulong? DataPlanHash)
{
    private static readonly ModelState Fresh = new(RunProgress.Beginning, null);

    /// <summary>Fills the model, and the optimizer when <paramref name="trainer"/> is given.</summary>
    /// <exception cref="ConfigException">No usable state, or it does not fit the model: all problems are listed.</exception>
    public static ModelState Load(ModelStateRequest request, ModelChunks model, Trainer trainer, RankLink link)
    {
        var loaded = FindCheckpoint(request, link) is { } checkpoint
            ? FromCheckpoint(request, checkpoint, model, trainer, link)
            : FromModelFolder(request, model, trainer, link);
        RequireFinite(model);
        return loaded;
    }

    /// <summary>Loads or draws the weights of <paramref name="model"/> from its Hugging Face folder.</summary>
    /// <returns>False when the folder has no weights and they were drawn at random.</returns>
    public static bool LoadWeights(ModelChunks model, string folder, bool allowRandom, long seed)
    {
        if (allowRandom && !HfWeightFolder.HasWeights(folder))
        {
            ModelInitializer.Initialize(model.Parameters, model.Config, seed);
            return false;
        }
        ModelWeights.Load(model.Config, model.Parameters, folder);
        return true;
    }

    /// <summary>Refuses to continue a run with other data than it was saved with (DESIGN D12).</summary>
    /// <exception cref="ConfigException">DATA030.</exception>
    public void RequireSameData(ulong planHash, TrainingConfig config)
    {
        if (DataPlanHash is null || DataPlanHash == planHash || config.NoLoadRng) return;
        throw new ConfigException("DATA030", $"The data of this run (plan {planHash:x16}) are not those of the checkpoint (plan {DataPlanHash:x16}): files, template, " +
            "seed or global_batch_size changed; restore them, give --no_load_rng true to go on with the new data, or --finetune true to start anew.");
    }

    /// <summary>Every rank reads its share of the files to verify them; all decide alike.</summary>
    private static StoredCheckpoint? FindCheckpoint(ModelStateRequest request, RankLink link)
    {
        var (parallel, device) = (request.Parallel, request.Device);
        var path = request.LoadFolder ?? request.Config.Load;
        if (path is null) return null;
        var share = new VerificationShare(link.Rank, parallel.World.Size, failed => HostValues.Any(parallel.World, device, failed));
        var search = CheckpointLocator.Find(path, CheckpointVerification.Full, request.Time, share);
        if (link.Rank == 0)
            foreach (var notice in search.Notices) link.Notice(notice, RankNoticeLevel.Warning);
        if (search.Found is null && request.Config.ExitOnMissingCheckpoint) throw CheckpointLocator.Missing(path);
        return search.Found;
    }

    private static ModelState FromModelFolder(ModelStateRequest request, ModelChunks model, Trainer trainer, RankLink link)
    {
        var found = LoadWeights(model, request.ModelFolder, allowRandom: !request.Config.NoInitialization, request.Config.Seed);
        trainer.Optimizer.CopyModelToMasters();
        if (link.Rank == 0) link.Notice(found ? $"loaded weights from {request.ModelFolder}" : $"{request.ModelFolder} has no weights: random weights from seed {request.Config.Seed}");
        return Fresh;
    }

    private static ModelState FromCheckpoint(ModelStateRequest request, StoredCheckpoint checkpoint, ModelChunks model, Trainer trainer, RankLink link)
    {
        using var scope = NewDisposeScope();
        using var reader = new CheckpointReader(checkpoint);
        reader.CheckModel(ConfigFacts.Of(request.Model));
        reader.LoadWeights(WeightBlock.OfParameters(model.Parameters, withDuplicates: true));
        trainer.Optimizer.CopyModelToMasters();
        // Recovery continues a run even when the user began it with --finetune.
        var weightsOnly = request.Config.Finetune && request.LoadFolder is null;
        if (link.Rank == 0) link.Notice($"loaded checkpoint from {checkpoint.Folder}{(weightsOnly ? " (weights only)" : "")}");
        if (weightsOnly) return Fresh;

        var state = reader.Manifest.Run.Trainer;
        // Nor does it leave out what the user left out at the beginning.
        var isRecovery = request.LoadFolder is not null;
        if (isRecovery ? reader.Manifest.HasOptimizerState() : !request.Config.NoLoadOptim)
        {
            reader.LoadState(StateSlice.OfOptimizer(trainer.Optimizer.State, withDuplicates: true));
            trainer.Restore(state);
        }
        // A snapshot that was written for recovery has no weight files: where it is the end of the run, the run saves once more.
        var isComplete = reader.Manifest.HasWeightFiles() || !request.Config.SaveSafetensors;
        var progress = new RunProgress(state.Iteration, state.ConsumedSamples, isComplete ? state.Iteration : -1)
        {
            StreamCursor = request.Config.NoLoadRng && !isRecovery ? null : state.Data.Stream,
        };
        return new ModelState(progress, state.Seed is null ? null : state.Data.PlanHash);
    }

    private static void RequireFinite(ModelChunks model)
    {
        var errors = new List<ConfigError>();
        foreach (var parameter in model.Parameters)
        {
            using var scope = NewDisposeScope();
            var count = parameter.Data.isfinite().logical_not_().sum().item<long>();
            if (count > 0) errors.Add(new ConfigError("MODEL010", $"{parameter.Name} has {count} values that are NaN or infinite; get an intact copy of the weights."));
        }
        if (errors.Count > 0) throw new ConfigException(errors);
    }
}
