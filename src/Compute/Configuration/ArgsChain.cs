namespace Megatron.Compute.Configuration;

/// <summary>What <see cref="ArgsChain.Fill"/> did.</summary>
/// <param name="Config">The configuration with the empty places filled.</param>
/// <param name="Source">The <c>args.json</c> that was read; null when there was none.</param>
/// <param name="Filled">Names of the options that came from it.</param>
public sealed record ArgsFill(TrainingConfig Config, string? Source, IReadOnlyList<string> Filled);

/// <summary>
/// The chain of <c>args.json</c> files: export writes one, training reads it and writes its own, export and inference read that. So the
/// template, the system prompt and the dtype of a model need to be said once.
/// </summary>
public static class ArgsChain
{
    private static readonly string[] ModelKeys =
    [
        "model", "model_type", "model_revision", "torch_dtype", "attn_impl", "task_type", "num_labels", "problem_type", "quant_method", "quant_bits",
        "template", "system", "truncation_strategy", "agent_template", "norm_bbox", "response_prefix", "custom_register_path",
    ];

    /// <summary>
    /// Fills options that were not given from the <c>args.json</c> in the folder of <c>--model</c>, <c>--mcore_model</c> or <c>--load</c>,
    /// the first that has one: nothing with <c>--load_args false</c>; the data options too with <c>--load_data_args true</c>. A dtype is
    /// not filled when the user said <c>--fp16</c> or <c>--bf16</c>. Reads files, touches nothing else.
    /// </summary>
    /// <exception cref="ConfigException">The file cannot be used.</exception>
    public static ArgsFill Fill(TrainingConfig config, GivenOptions given)
    {
        var nothing = new ArgsFill(config, null, []);
        if (!config.LoadArgs) return nothing;
        string?[] folders = [config.Model, config.McoreModel, config.Load];
        var file = folders.OfType<string>().Where(Directory.Exists).Select(ArgsFile.TryRead).FirstOrDefault(found => found is not null);
        if (file is null) return nothing;

        var values = new Dictionary<string, object?>(StringComparer.Ordinal);
        foreach (var option in Fillable(config).Where(option => !given.Contains(option.Name)))
        {
            if (option.Name == "model" && config.Model is not null) continue;
            if (option.Name == "torch_dtype" && (given.Contains("fp16") || given.Contains("bf16"))) continue;
            if (file.TryGet(option, out var value)) values[option.Name] = option.Name == "model" ? Locate(value, file.Path) : value;
        }

        return new ArgsFill(OptionCatalog.With(config, values), file.Path, [.. values.Keys]);
    }

    private static IEnumerable<OptionInfo> Fillable(TrainingConfig config)
    {
        var keys = ModelKeys.Select(OptionCatalog.Get);
        return config.LoadDataArgs ? keys.Concat(OptionCatalog.All.Where(option => option.Section == OptionSection.Data)) : keys;
    }

    /// <summary>A relative model path means the folder of the run or, when there is none such, that of the file.</summary>
    private static object? Locate(object? model, string file)
    {
        if (model is not string path || Path.IsPathRooted(path) || Directory.Exists(path)) return model;
        var beside = Path.GetFullPath(Path.Combine(Path.GetDirectoryName(file) ?? ".", path));
        return Directory.Exists(beside) ? beside : model;
    }
}
