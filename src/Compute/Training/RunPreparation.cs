using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Training;

/// <summary>A run that may be submitted: every open value of the configuration is filled and checked.</summary>
/// <param name="Config">Resolved configuration; what the job is given and <c>args.json</c> holds.</param>
/// <param name="Model">Architecture.</param>
/// <param name="Notices">Lines for the user.</param>
public sealed record PreparedRun(TrainingConfig Config, ModelConfig Model, IReadOnlyList<string> Notices)
{
    /// <summary>The run's folder, absolute.</summary>
    public string Folder => Config.Save ?? throw new InvalidOperationException("The run has no folder.");

    /// <summary>The highest folder that was made for this run; null when all were there before.</summary>
    public string? FirstMadeFolder { get; init; }
}

/// <summary>
/// From what the user typed to a run that may start: the <c>args.json</c> chain, the model folder, dtype, template, derived defaults, all
/// checks, the run's folder. Happens on the submitting side, before a device is touched; nothing is written until every check has passed.
/// </summary>
public static class RunPreparation
{
    /// <summary>Folder of prepared data in that of the run, where no other is known.</summary>
    private const string PreparedData = "prepared_data";

    /// <summary>Prepares <c>sft</c> or <c>pt</c> and makes the run's folder.</summary>
    /// <param name="config">As for <see cref="Check"/>, likewise the others.</param>
    /// <param name="given">Options that the user gave.</param>
    /// <param name="isPretraining"><c>pt</c>.</param>
    /// <param name="worldSize">Ranks of the job.</param>
    /// <param name="time">Source of the folder's time stamp.</param>
    /// <param name="folderName">
    /// Name of the run's folder below <c>--save</c>, instead of a new version: whoever submits the same job again must name the same folder.
    /// </param>
    /// <exception cref="ConfigException">As <see cref="Check"/>, or the folder cannot be written.</exception>
    public static PreparedRun Prepare(
        TrainingConfig config, GivenOptions given, bool isPretraining, int worldSize, TimeProvider time, string? folderName = null)
    {
        var run = Check(config, given, isPretraining, worldSize, time);
        var (folder, firstMade) = folderName is null
            ? RunFolder.Create(run.Folder, run.Config.AddVersion, time)
            : RunFolder.Create(Path.Combine(run.Folder, folderName), addVersion: false, time);
        var resolved = run.Config with
        {
            DatasetCacheDir = (run.Config.LoadFromCacheFile ? run.Config.DatasetCacheDir : null) ?? Path.Combine(folder, PreparedData),
            Save = folder,
            JobId = run.Config.JobId ?? Path.GetFileName(folder),
        };
        return run with { Config = resolved, FirstMadeFolder = firstMade };
    }

    /// <summary>Resolves and checks <c>sft</c> or <c>pt</c> and writes nothing: the folder is still the one above the versions.</summary>
    /// <param name="config">The configuration as parsed.</param>
    /// <param name="given">Options that the user gave.</param>
    /// <param name="isPretraining"><c>pt</c>: plain text, loss on all tokens.</param>
    /// <param name="worldSize">Ranks of the job.</param>
    /// <param name="time">Source of the folder's time stamp.</param>
    /// <exception cref="ConfigException">Everything that is wrong, at once as far as it can be known.</exception>
    public static PreparedRun Check(TrainingConfig config, GivenOptions given, bool isPretraining, int worldSize, TimeProvider time)
    {
        if (isPretraining) config = config with { UseChatTemplate = false, LossScale = "all", Template = config.Template ?? "default" };
        if (config.Resume) config = WithNewestCheckpointOfSave(config, time);
        if (config.Streaming) config = AsStream(config, given);
        var fill = ArgsChain.Fill(config, given);
        config = fill.Config;
        ThrowIfHopeless(config, worldSize);

        var folder = ModelFolder.Find(config);
        var hf = HfConfigReader.ReadFolder(folder);
        if (given.Contains("model_type") && config.ModelType != hf.Model.ModelType)
            throw new ConfigException("CFG006", $"--model_type = {config.ModelType} contradicts config.json in {folder}, which says {hf.Model.ModelType}; leave it out.");
        var model = ModelConfigOverrides.Apply(hf.Model, config);
        config = Resolve(config, hf, model, folder);
        ConfigValidator.ThrowIfInvalid(config, model, worldSize);
        RequireFiles(config, time);

        config = config with { Save = Path.GetFullPath(config.Save ?? DefaultSave(folder)) };
        var notices = new List<string>();
        if (fill.Filled.Count > 0) notices.Add($"from {fill.Source}: {string.Join(", ", fill.Filled)}");
        if (given.Contains("ckpt_format")) notices.Add("ckpt_format torch_dist: written as safetensors files with a manifest, which any layout loads; no pickle, no .distcp files");
        return new PreparedRun(config, model, notices);
    }

    /// <summary>
    /// Resolves what the encoding of data depends on, as <see cref="Check"/> does for a run, and checks it: the same options find the same prepared
    /// data. Length and batch options may be missing.
    /// </summary>
    /// <exception cref="ConfigException">Everything that is wrong.</exception>
    public static (TrainingConfig Config, ModelConfig Model) CheckData(TrainingConfig config, GivenOptions given)
    {
        if (config.Streaming) throw new ConfigException("CFG006", "--streaming = true does not go with megatron data, which prepares data before training; leave it out.");
        if (!config.UseChatTemplate) config = config with { LossScale = "all", Template = config.Template ?? "default" };
        if (!given.Contains("global_batch_size")) config = config with { GlobalBatchSize = config.MicroBatchSize };
        if (config.TrainIters is null && config.MaxEpochs is null) config = config with { MaxEpochs = 1 };
        config = ArgsChain.Fill(config, given).Config;
        ThrowIfHopeless(config, worldSize: 1);
        var folder = ModelFolder.Find(config);
        var hf = HfConfigReader.ReadFolder(folder);
        var model = ModelConfigOverrides.Apply(hf.Model, config);
        config = Resolve(config, hf, model, folder);
        ConfigValidator.ThrowIfInvalid(config, model, worldSize: 1);
        return (config with { DatasetCacheDir = config.DatasetCacheDir ?? Path.GetFullPath(PreparedData) }, model);
    }

    /// <summary>Fills what follows from the model: dtype, template, lengths, weight of the balance loss, intervals.</summary>
    public static TrainingConfig Resolve(TrainingConfig config, HfConfig hf, ModelConfig model, string folder)
    {
        var dtype = config.TorchDtype ?? (config.Bf16 == true ? "bfloat16" : config.Fp16 == true ? "float16" : hf.Dtype ?? "float32");
        var tokenizerFolder = config.Tokenizer ?? folder;
        var template = config.Template
            ?? ChatTemplates.ForModel(model.Architecture, model.ModelType, Path.GetFileName(folder), HfTokenizer.Load(tokenizerFolder)).Name;
        ChatTemplates.Get(template);
        return config with
        {
            Model = folder,
            ModelType = model.ModelType,
            TorchDtype = dtype,
            Bf16 = dtype == "bfloat16",
            Fp16 = dtype == "float16",
            Template = template,
            MoeAuxLossCoeff = model.Moe is null ? config.MoeAuxLossCoeff : config.MoeAuxLossCoeff ?? hf.RouterAuxLossCoeff ?? 0,
            MaxLength = config.MaxLength ?? config.PackingLength ?? model.MaxPositionEmbeddings,
            SeqLength = config.SeqLength ?? config.PackingLength ?? config.MaxLength ?? model.MaxPositionEmbeddings,
            EvalInterval = config.EvalInterval ?? config.SaveInterval,
            Load = config.Load is null ? null : Path.GetFullPath(config.Load),
        };
    }

    /// <summary>What streaming implies where the user said nothing: the order of the source, and nothing split off.</summary>
    private static TrainingConfig AsStream(TrainingConfig config, GivenOptions given) => config with
    {
        DataloaderType = given.Contains("dataloader_type") ? config.DataloaderType : "external",
        SplitDatasetRatio = given.Contains("split_dataset_ratio") ? config.SplitDatasetRatio : 0,
    };

    /// <summary>All mistakes that show without the model folder, at once.</summary>
    private static void ThrowIfHopeless(TrainingConfig config, int worldSize)
    {
        ConfigError[] errors =
        [
            .. ConfigValidator.MissingForTraining(config),
            .. ConfigValidator.Validate(config, model: null, worldSize),
            .. UnsupportedValues.Check(config, model: null),
        ];
        if (errors.Length > 0) throw new ConfigException(errors);
    }

    private static string DefaultSave(string modelFolder) => Path.Combine("megatron_output", Path.GetFileName(modelFolder.TrimEnd('/')));

    private static void RequireFiles(TrainingConfig config, TimeProvider time)
    {
        if (config.Load is { } load && config.ExitOnMissingCheckpoint && CheckpointLocator.Find(load, CheckpointVerification.Sizes, time).Found is null)
            throw CheckpointLocator.Missing(load);
    }

    private static TrainingConfig WithNewestCheckpointOfSave(TrainingConfig config, TimeProvider time)
    {
        if (string.IsNullOrEmpty(config.Save)) throw new ConfigException("CFG051", "resume continues the newest run below --save; give --save.");
        var root = Path.GetFullPath(config.Save);
        string[] candidates = Directory.Exists(root) ? [root, .. Directory.GetDirectories(root, "v*")] : [];
        var newest = candidates.Where(folder => new CheckpointStore(folder, time).FindNewestVerified(CheckpointVerification.Sizes).Found is not null).MaxBy(Directory.GetLastWriteTimeUtc)
            ?? throw new ConfigException("CKPT002", $"save = {root} has no checkpoint to resume from; start without --resume.");
        return config with { Load = newest, Finetune = false };
    }
}
