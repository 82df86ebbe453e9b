using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// <c>export --to_mcore</c> and <c>--to_hf</c>: copies between a Hugging Face folder and a checkpoint of ours, tensor by tensor, so memory is
/// bounded by the largest tensor. Output is written beside its final place and appears whole.
/// </summary>
public static class ModelConversion
{
    /// <summary>A Hugging Face folder becomes a weights-only checkpoint of iteration 1 with tokenizer and <c>args.json</c>.</summary>
    /// <returns>The output folder.</returns>
    /// <exception cref="ConfigException">The input cannot be used, or the output exists and <c>--exist_ok</c> is not given.</exception>
    public static string ToMcore(TrainingConfig config, TimeProvider time)
    {
        var source = ModelFolder.Find(config);
        var hf = HfConfigReader.ReadFolder(source);
        config = RunPreparation.Resolve(config with { ToMcore = false }, hf, hf.Model, source);
        using var weights = OpenChecked(source, hf.Model);
        var output = OutputFolder(config, source, "mcore");
        return Write(output, config.ExistOk, folder =>
        {
            var store = new CheckpointStore(folder, time);
            const string saveId = "convert";
            var plan = Plan(hf.Model, config, weights);
            var temporary = store.BeginSave(attempt: 0, saveId, plan.Shards.Sum(shard => shard.Tensors.Sum(tensor => tensor.SizeBytes)));
            var part = CheckpointWriter.WriteRank(temporary, rank: 0, new RankContent
            {
                ModelPlan = plan,
                Weights = plan.Shards.SelectMany(shard => shard.Tensors).Select(spec => WholeTensor(weights, spec)),
                State = [],
                SideFiles = SideFiles(source, hf.Model, config),
            });
            store.Commit(saveId, Facts(config, hf.Model, source), [part]);
            ArgsFile.Write(folder, config);
        });
    }

    /// <summary>The newest checkpoint below <c>--mcore_model</c> becomes a folder that transformers and vLLM load.</summary>
    /// <returns>The output folder.</returns>
    /// <exception cref="ConfigException">As <see cref="ToMcore"/>.</exception>
    public static string ToHf(TrainingConfig config, TimeProvider time, Action<string> notice)
    {
        var source = config.McoreModel ?? config.Load
            ?? throw new ConfigException("CFG021", "to_hf needs a checkpoint; give --mcore_model with the folder that holds latest_checkpointed_iteration.txt.");
        var search = CheckpointLocator.Find(source, CheckpointVerification.Full, time);
        foreach (var line in search.Notices) notice(line);
        var checkpoint = search.Found?.Folder ?? throw CheckpointLocator.Missing(source);
        var hf = HfConfigReader.ReadFolder(checkpoint);
        config = config with { ToHf = false, TorchDtype = config.TorchDtype ?? hf.Dtype };
        using var weights = OpenChecked(checkpoint, hf.Model);
        var output = OutputFolder(config, source, "hf");
        return Write(output, config.ExistOk, folder =>
        {
            Directory.CreateDirectory(folder);
            HfTensor[] tensors = [.. Plan(hf.Model, config, weights).Shards.SelectMany(shard => shard.Tensors).Select(spec => new HfTensor(spec, () => Read(weights, spec)))];
            HfFolderWriter.WriteWeights(folder, tensors, HfShardPlan.ParseSize(config.MaxShardSize));
            HfFolderWriter.WriteSideFiles(folder, SideFiles(checkpoint, hf.Model, config));
        });
    }

    private static HfWeightFolder OpenChecked(string folder, ModelConfig model)
    {
        var weights = HfWeightFolder.Open(folder);
        try
        {
            weights.Check(
                [.. HfTensorCatalog.Of(model).Select(tensor => new ExpectedTensor(tensor.Name, tensor.Shape))],
                model.TieWordEmbeddings ? new HashSet<string> { HfTensorNames.Head } : []);
            return weights;
        }
        catch
        {
            weights.Dispose();
            throw;
        }
    }

    private static string OutputFolder(TrainingConfig config, string source, string suffix)
    {
        var output = Path.GetFullPath(config.OutputDir ?? $"{Path.TrimEndingDirectorySeparator(source)}-{suffix}");
        if (Path.Exists(output) && !config.ExistOk)
            throw new ConfigException("DISK002", $"output_dir = {output} exists already; give another --output_dir, or --exist_ok true to write into it.");
        return output;
    }

    private static string Write(string output, bool existOk, Action<string> write)
    {
        var temporary = $"{output}.tmp-{Environment.ProcessId}";
        try
        {
            Directory.CreateDirectory(temporary);
            write(temporary);
            if (existOk && Directory.Exists(output)) MoveInto(temporary, output);
            else Directory.Move(temporary, output);
            return output;
        }
        catch (IOException e)
        {
            throw new ConfigException("DISK003", $"{output} was not written ({e.Message}); free some space or choose another --output_dir.");
        }
        finally
        {
            if (Directory.Exists(temporary)) Directory.Delete(temporary, recursive: true);
        }
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
    }

    /// <summary>Tensors of the architecture in the dtype of the export; without <c>--torch_dtype</c> each keeps its own.</summary>
    private static HfShardPlan Plan(ModelConfig model, TrainingConfig config, HfWeightFolder weights)
    {
        var dtype = TensorBytes.ToSafetensors(RunSettings.ModelDType(config));
        var specs = HfTensorCatalog.Of(model).Where(tensor => weights.Contains(tensor.Name)).Select(tensor => new SafetensorsSpec(tensor.Name, dtype, tensor.Shape));
        return HfShardPlan.Make([.. specs], HfShardPlan.ParseSize(config.MaxShardSize));
    }

    private static WeightBlock WholeTensor(HfWeightFolder weights, SafetensorsSpec spec) => new(TensorBlock.Whole(spec.Name, spec.Shape), Read(weights, spec));

    private static Tensor Read(HfWeightFolder weights, SafetensorsSpec spec)
    {
        var dtype = TensorBytes.ToScalarType(spec.DType) ?? throw new InvalidOperationException($"libtorch has no dtype {spec.DType}.");
        var tensor = weights.ReadTensor(spec.Name);
        if (tensor.dtype == dtype) return tensor;
        using (tensor) return tensor.to_type(dtype);
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
}
