using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Checkpointing.Mcore;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;

namespace Megatron.Compute.Training;

/// <summary>
/// <c>export --to_mcore</c> and <c>--to_hf</c>: copies between a Hugging Face folder and a checkpoint, ours or of Megatron-LM, piece by piece, so that
/// memory does not grow with the model. Output is written into <c>{output}.partial</c> and appears whole; after an interruption the same command goes
/// on with the next weight file.
/// </summary>
public static class ModelConversion
{
    private const string SaveId = "convert";

    /// <summary>A Hugging Face folder becomes a weights-only checkpoint of iteration 1 with tokenizer and <c>args.json</c>.</summary>
    /// <param name="config">Options of the export.</param>
    /// <param name="time">Clock of the checkpoint store.</param>
    /// <param name="notice">Gets lines to print.</param>
    /// <returns>The output folder.</returns>
    /// <exception cref="ConfigException">The input cannot be used, or the output exists and <c>--exist_ok</c> is not given.</exception>
    /// <exception cref="ConversionException"><c>--test_convert_precision</c> found a difference.</exception>
    public static string ToMcore(TrainingConfig config, TimeProvider time, Action<string> notice)
    {
        var source = ModelFolder.Find(config);
        var hf = HfConfigReader.ReadFolder(source);
        config = RunPreparation.Resolve(config with { ToMcore = false }, hf, hf.Model, source);
        using var weights = Checked(HfWeightFolder.Open(source), hf.Model);
        var plan = Plan(hf.Model, config, weights);
        return Write(new Conversion(OutputFolder(config, source, "mcore"), config, weights, plan, notice), (folder, journal) =>
        {
            var store = new CheckpointStore(folder, time);
            var temporary = store.BeginSave(attempt: 0, SaveId, journal.NumFinished > 0 ? 0 : plan.TotalBytes);
            var files = new WeightCopier(weights, plan, temporary, journal).Run();
            var checkpoint = store.Commit(SaveId, Facts(config, hf.Model, source), [CheckpointWriter.WriteConverted(temporary, plan, files, SideFiles(source, hf.Model, config))]);
            ArgsFile.Write(folder, config);
            notice("Successfully transferred HF model weights to MG model.");
            if (config.TestConvertPrecision) TestPrecision(config, source, weights, checkpoint.Folder, ("hf_tokens", "mg_tokens"), notice);
        });
    }

    /// <summary>
    /// The newest checkpoint below <c>--mcore_model</c> becomes a folder that transformers and vLLM load. A checkpoint of Megatron-LM has no
    /// <c>config.json</c> and no tokenizer: they are those of <c>--model</c>.
    /// </summary>
    /// <returns>The output folder.</returns>
    /// <exception cref="ConfigException">As <see cref="ToMcore"/>.</exception>
    /// <exception cref="ConversionException">As <see cref="ToMcore"/>.</exception>
    public static string ToHf(TrainingConfig config, TimeProvider time, Action<string> notice)
    {
        var source = config.McoreModel ?? config.Load
            ?? throw new ConfigException("CFG021", "to_hf needs a checkpoint; give --mcore_model with the folder that holds latest_checkpointed_iteration.txt.");
        if (McoreWeights.FindFolder(source) is { } mcore)
        {
            var model = FolderOfMcoreModel(config, source);
            var hf = HfConfigReader.ReadFolder(model);
            notice($"{mcore} was written by Megatron-LM: its model weights are read, with config.json and tokenizer of {model}");
            using var weights = Checked(new McoreWeights(mcore, hf.Model), hf.Model);
            return ToHf(config, source, model, hf, weights, notice);
        }
        // Weights that are copied unchanged are verified on the way. Damage, which is rare, then costs a second start, with an older checkpoint.
        return TryOwnToHf(config, source, CheckpointVerification.SmallFiles, time, notice) ?? TryOwnToHf(config, source, CheckpointVerification.Full, time, notice)
            ?? throw new ConfigException("CKPT022", $"{source}: the weights change while they are read; check the disk.");
    }

    /// <returns>The output folder; null when the weights were not verified before and turned out not to be what was saved.</returns>
    private static string? TryOwnToHf(TrainingConfig config, string source, CheckpointVerification level, TimeProvider time, Action<string> notice)
    {
        var search = CheckpointLocator.Find(source, level, time);
        var checkpoint = search.Found ?? throw CheckpointLocator.Missing(source);
        var own = HfConfigReader.ReadFolder(checkpoint.Folder);
        using IWeightSource stored = Checked(checkpoint.Manifest.HasWeightFiles() ? HfWeightFolder.Open(checkpoint.Folder) : new CheckpointWeights(checkpoint), own.Model);
        var isUnverified = level == CheckpointVerification.SmallFiles;
        if (isUnverified && !CopiesUnchanged(config, checkpoint.Manifest, own)) return null;
        foreach (var line in search.Notices) notice(line);
        try
        {
            return ToHf(config, source, checkpoint.Folder, own, stored, notice, isUnverified ? checkpoint.Manifest.WeightHash : null);
        }
        catch (DamagedWeightsException)
        {
            return null;
        }
    }

    private static bool CopiesUnchanged(TrainingConfig config, CheckpointManifest manifest, HfConfig hf)
    {
        var dtype = TensorBytes.ToSafetensors(RunSettings.ModelDType(config with { TorchDtype = config.TorchDtype ?? hf.Dtype ?? "float32" }));
        return manifest.HasWeightFiles() && manifest.Tensors.All(tensor => tensor.DType == dtype);
    }

    /// <param name="weightHash">What the weights must hash to, <see cref="CheckpointManifest.WeightHash"/>; null when they were verified before.</param>
    private static string ToHf(TrainingConfig config, string source, string modelFolder, HfConfig hf, IWeightSource weights, Action<string> notice, string? weightHash = null)
    {
        config = config with { ToHf = false, TorchDtype = config.TorchDtype ?? hf.Dtype ?? "float32" };
        var plan = Plan(hf.Model, config, weights);
        return Write(new Conversion(OutputFolder(config, source, "hf"), config, weights, plan, notice), (folder, journal) =>
        {
            var files = new WeightCopier(weights, plan, folder, journal).Run();
            if (weightHash is not null && WeightHashes.Combine(files.SelectMany(file => file.Tensors)) != weightHash) throw new DamagedWeightsException();
            if (plan.IsSharded) HfFolderWriter.WriteFile(folder, HfShardPlan.IndexFileName, plan.MakeIndex());
            HfFolderWriter.WriteSideFiles(folder, SideFiles(modelFolder, hf.Model, config));
            if (config.TestConvertPrecision) TestPrecision(config, modelFolder, weights, folder, ("mg_tokens", "hf_tokens"), notice);
        });
    }

    /// <summary>Prints the comparison as the reference does; throws before the output is in its place.</summary>
    private static void TestPrecision(
        TrainingConfig config, string sourceFolder, IWeightSource source, string result, (string Source, string Result) names, Action<string> notice)
    {
        var precision = ConversionPrecision.Measure(config, sourceFolder, source, result);
        notice(FormattableString.Invariant(
            $"mean_diff: {precision.MeanDifference:G6}, max_diff: {precision.MaxDifference:G6} (mean_diff must be below {ConversionPrecision.MeanDifferenceBound})"));
        (string Name, IReadOnlyList<long> Tokens)[] rows = [(names.Source, precision.SourceTokens), (names.Result, precision.ResultTokens)];
        foreach (var (name, tokens) in rows.OrderBy(row => row.Name, StringComparer.Ordinal)) notice($"{name}: [{string.Join(", ", tokens)}]");
        if (precision.IsPassed) return;
        throw new ConversionException(FormattableString.Invariant($"the converted model computes something else than its source (mean_diff {precision.MeanDifference:G6}, ")
            + $"likeliest tokens {(precision.SourceTokens.SequenceEqual(precision.ResultTokens) ? "equal" : "different")}), so nothing was written; "
            + "export in the dtype of the source (--torch_dtype), or leave --test_convert_precision out to accept the difference.");
    }

    /// <summary>Opens nothing more: compares weights and architecture, and closes the weights when they do not fit.</summary>
    private static IWeightSource Checked(IWeightSource weights, ModelConfig model)
    {
        try
        {
            WeightCheck.Run(
                weights, [.. HfTensorCatalog.Of(model).Select(tensor => new ExpectedTensor(tensor.Name, tensor.Shape))],
                model.TieWordEmbeddings ? new HashSet<string> { HfTensorNames.Head } : []);
            return weights;
        }
        catch
        {
            weights.Dispose();
            throw;
        }
    }

    private static string FolderOfMcoreModel(TrainingConfig config, string source)
    {
        if (config.Model is not null) return ModelFolder.Find(config);
        if (File.Exists(Path.Combine(source, "config.json"))) return Path.GetFullPath(source);
        if (ArgsFile.TryRead(source) is { } args && args.TryGet(OptionCatalog.Get("model"), out var model) && model is string folder && Directory.Exists(folder)) return Path.GetFullPath(folder);
        throw new ConfigException("CFG020", $"mcore_model = {source} was written by Megatron-LM, which keeps no config.json; give --model with the Hugging Face folder that the run began with.");
    }

    private static string OutputFolder(TrainingConfig config, string source, string suffix)
    {
        var output = Path.GetFullPath(config.OutputDir ?? $"{Path.TrimEndingDirectorySeparator(source)}-{suffix}");
        if (Path.Exists(output) && !config.ExistOk)
            throw new ConfigException("DISK002", $"output_dir = {output} exists already; give another --output_dir, or --exist_ok true to write into it.");
        return output;
    }

    private static string Write(Conversion conversion, Action<string, ConversionJournal> write)
    {
        var (output, partial) = (conversion.Output, conversion.Output + ".partial");
        try
        {
            using (var journal = ConversionJournal.Open(partial, conversion.Fingerprint))
            {
                if (journal.NumFinished > 0) conversion.Notice($"going on in {partial}: {journal.NumFinished} of {conversion.Plan.Shards.Count} weight files are finished");
                RequireSpace(partial, conversion.Plan, journal);
                write(partial, journal);
                journal.Close();
            }
            if (conversion.Config.ExistOk && Directory.Exists(output)) MoveInto(partial, output);
            else Directory.Move(partial, output);
            return output;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DISK003", $"{output} was not written ({e.Message.TrimEnd('.')}); free some space and give the same command again to go on, or choose another --output_dir and delete {partial}.");
        }
        catch (Exception e) when (e is ConversionException or DamagedWeightsException || (e is ConfigException error && error.Errors[0].Code != "DISK004"))
        {
            // The input or the dtype is at fault: nothing of the output is worth keeping.
            if (Directory.Exists(partial)) Directory.Delete(partial, recursive: true);
            throw;
        }
    }

    private static void RequireSpace(string partial, HfShardPlan plan, ConversionJournal journal)
    {
        var free = new DriveInfo(partial).AvailableFreeSpace;
        if (journal.NumFinished == 0 && free < plan.TotalBytes)
            throw new IOException(string.Create(System.Globalization.CultureInfo.InvariantCulture, $"the weights have {plan.TotalBytes >> 20} MiB, {free >> 20} MiB are free"));
    }

    private static void MoveInto(string source, string target)
    {
        foreach (var path in Directory.EnumerateFileSystemEntries(source))
        {
            var destination = Path.Combine(target, Path.GetFileName(path));
            if (Directory.Exists(destination)) Directory.Delete(destination, recursive: true);
            if (Directory.Exists(path)) Directory.Move(path, destination);
            else File.Move(path, destination, overwrite: true);
        }
        Directory.Delete(source, recursive: true);
    }

    /// <summary>Tensors of the architecture, in the dtype of the export.</summary>
    private static HfShardPlan Plan(ModelConfig model, TrainingConfig config, IWeightSource weights)
    {
        var dtype = TensorBytes.ToSafetensors(RunSettings.ModelDType(config));
        var specs = HfTensorCatalog.Of(model).Where(tensor => weights.Find(tensor.Name) is not null).Select(tensor => new SafetensorsSpec(tensor.Name, dtype, tensor.Shape));
        return HfShardPlan.Make([.. specs], HfShardPlan.ParseSize(config.MaxShardSize));
    }

    private static HfSideFiles SideFiles(string folder, ModelConfig model, TrainingConfig config) => new()
    {
        Config = HfConfigWriter.Write(File.ReadAllBytes(Path.Combine(folder, "config.json")), model, config.TorchDtype),
        GenerationConfig = File.Exists(Path.Combine(folder, "generation_config.json")) ? File.ReadAllBytes(Path.Combine(folder, "generation_config.json")) : null,
        Args = Encoding.UTF8.GetBytes(ArgsFile.WithoutSecrets(config).ToJson()),
        TokenizerFolder = folder,
    };

    private static RunFacts Facts(TrainingConfig config, ModelConfig model, string source) => new()
    {
        JobId = "export",
        Attempt = 0,
        ModelConfig = ConfigFacts.Of(model),
        TokenizerHash = ConfigFacts.TokenizerHash(source),
        Layout = CheckpointLayout.SingleRank,
        GlobalBatchSize = config.GlobalBatchSize,
        MicroBatchSize = config.MicroBatchSize,
        Optimizer = new Dictionary<string, string>(),
        Schedule = new Dictionary<string, string>(),
        Trainer = new TrainerState
        {
            Iteration = 1, ConsumedSamples = 0, OptimizerSteps = 0, SkippedIterations = 0, NanIterations = 0, LossScaler = null, Seed = null,
            Data = new DataCursor(0, 0),
        },
    };

    /// <summary>One conversion: where to, from what, and cut how.</summary>
    private sealed record Conversion(string Output, TrainingConfig Config, IWeightSource Weights, HfShardPlan Plan, Action<string> Notice)
    {
        /// <summary>Another source, dtype or size of files makes another conversion.</summary>
        public string Fingerprint => $"{Config.TorchDtype}|{Config.MaxShardSize}|{Weights.Fingerprint}";
    }

    /// <summary>The weights that were copied are not those that the manifest describes.</summary>
    private sealed class DamagedWeightsException : Exception;
}
