using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Inference;

/// <summary>Which folder's weights <c>--model</c> means.</summary>
public static class ModelSource
{
    /// <summary>
    /// A Hugging Face folder or a checkpoint itself; of a run's folder the newest intact checkpoint.
    /// </summary>
    /// <param name="model">Value of <c>--model</c>.</param>
    /// <param name="time">Clock of the checkpoint store.</param>
    /// <param name="notice">Gets lines about damaged checkpoints that were passed over.</param>
    /// <exception cref="ConfigException">CFG020, MODEL006, CKPT00x: nothing usable is there.</exception>
    public static string Find(string? model, TimeProvider time, Action<string> notice)
    {
        if (model is null) throw new ConfigException("CFG020", "no model is named; give --model with a Hugging Face folder, a checkpoint or the folder of a run.");
        if (!Directory.Exists(model))
            throw new ConfigException("MODEL006", $"model = {model} is no folder on this machine; give the path of a model folder (models are not downloaded).");
        var folder = Path.GetFullPath(model);
        var isTrainingOnly = File.Exists(Path.Combine(folder, CheckpointManifest.FileName)) && !HfWeightFolder.HasWeights(folder);
        if (File.Exists(Path.Combine(folder, "config.json")) && !isTrainingOnly) return folder;
        var search = CheckpointLocator.Find(folder, CheckpointVerification.Full, time);
        foreach (var line in search.Notices) notice(line);
        if (search.Found is { } found && !found.Manifest.HasWeightFiles())
            throw new ConfigException("CKPT033", $"{found.Folder} holds training slices only (--save_safetensors false); make a model of it with megatron export --to_hf --mcore_model {model}.");
        return search.Found?.Folder
            ?? throw new ConfigException("MODEL006", $"model = {model} holds neither config.json nor a checkpoint; give a Hugging Face folder, a checkpoint or the folder of a run.");
    }
}
