using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>
/// What is done to a configuration between parsing and the verb: rules of verbs, texts in files, full paths, the args.json chain.
/// </summary>
public static class ConfigResolution
{
    private static readonly string[] InputFolders = ["model", "load", "mcore_model", "golden", "tokenizer"];
    private static readonly string[] OutputPaths = ["save", "output_dir", "dump", "result_path", "tensorboard_dir", "wandb_save_dir", "dataset_cache_dir", "report_path"];

    /// <summary>Returns the completed configuration.</summary>
    /// <exception cref="ConfigException">A text file or an args.json cannot be used, or an option contradicts the verb.</exception>
    public static TrainingConfig Complete(TrainingConfig config, string verb, GivenOptions given)
    {
        config = WithFullPaths(config) with { System = ReadText("system", config.System), ResponsePrefix = Unescape(config.ResponsePrefix) };
        if (verb is "pt" or "sft" && given.Contains("enable_thinking"))
            throw new ConfigException("CFG006", $"--enable_thinking does not go with megatron {verb}: answers are learned as the data have them; give it to megatron infer.");
        if (verb == "pt") config = AsPlainText(config, given);
        return ArgsChain.Fill(config, given).Config;
    }

    /// <summary>Pre-training knows no chat template, and every token carries loss.</summary>
    private static TrainingConfig AsPlainText(TrainingConfig config, GivenOptions given)
    {
        var errors = new List<ConfigError>();
        if (config.UseChatTemplate && given.Contains("use_chat_template"))
            errors.Add(new("CFG006", "--use_chat_template = true does not go with megatron pt, which trains on plain text; use megatron sft."));
        if (config.LossScale != "all" && given.Contains("loss_scale"))
            errors.Add(new("CFG006", $"--loss_scale = {config.LossScale} does not go with megatron pt, where all tokens carry loss; leave it out."));
        return errors.Count == 0 ? config with { UseChatTemplate = false, LossScale = "all" } : throw new ConfigException(errors);
    }

    /// <summary>Relative paths belong to the folder in which the command was typed, not to that of a silo.</summary>
    private static TrainingConfig WithFullPaths(TrainingConfig config)
    {
        var values = new Dictionary<string, object?>(StringComparer.Ordinal);
        foreach (var option in InputFolders.Select(OptionCatalog.Get))
            if (option.Get(config) is string path && path.Length > 0 && Path.Exists(path)) values[option.Name] = Path.GetFullPath(path);
        foreach (var option in OutputPaths.Select(OptionCatalog.Get))
            if (option.Get(config) is string path && path.Length > 0) values[option.Name] = Path.GetFullPath(path);
        return OptionCatalog.With(config, values);
    }

    private static string? ReadText(string name, string? text)
    {
        if (text is null || !text.EndsWith(".txt", StringComparison.Ordinal)) return Unescape(text);
        try
        {
            return File.ReadAllText(text);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("CFG011", $"--{name} = {text} cannot be read ({exception.Message.TrimEnd('.')}); correct the path or give the text itself.");
        }
    }

    /// <summary>A shell passes "\n" as two characters.</summary>
    private static string? Unescape(string? text) => text?.Replace("\\n", "\n", StringComparison.Ordinal);
}
