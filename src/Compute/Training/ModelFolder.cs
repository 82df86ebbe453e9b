using Megatron.Compute.Configuration;

namespace Megatron.Compute.Training;

/// <summary>Where the architecture and the tokenizer of a run come from.</summary>
public static class ModelFolder
{
    /// <summary>The folder that <c>--model</c> names.</summary>
    /// <exception cref="ConfigException">MODEL006: it is not there.</exception>
    public static string Find(TrainingConfig config)
    {
        var model = config.Model ?? throw new ConfigException("CFG020", "no model is named; give --model with the folder of a Hugging Face model.");
        return Directory.Exists(model)
            ? Path.GetFullPath(model)
            : throw new ConfigException("MODEL006", $"model = {model} is no folder on this machine; give the path of a Hugging Face folder (models are not downloaded).");
    }
}
