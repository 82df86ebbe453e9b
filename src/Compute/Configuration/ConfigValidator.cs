namespace Megatron.Compute.Configuration;

/// <summary>
/// Says everything that is wrong with a configuration, before a device is touched: each mistake once, with option, value and remedy.
/// Pure: it reads no file and no environment. Values that are right but not built yet are refused by <see cref="UnsupportedValues"/>.
/// Codes: CFG005 range, CFG006 options that contradict or need each other, CFG007 sizes that do not divide, CFG008 something is missing.
/// </summary>
public static class ConfigValidator
{
    /// <summary>All mistakes; empty when there is none.</summary>
    /// <param name="config">The run.</param>
    /// <param name="model">Architecture with <see cref="ModelConfigOverrides"/> applied; null when it is not known yet, then only what the
    /// options themselves say about the model is checked.</param>
    /// <param name="worldSize">Number of ranks of the run.</param>
    public static IReadOnlyList<ConfigError> Validate(TrainingConfig config, ModelConfig? model, int worldSize)
    {
        var errors = new List<ConfigError>();
        RangeRules.Check(config, errors);
        CombinationRules.Check(config, errors);

        // Divisions by sizes that are themselves out of range would only repeat the mistake.
        if (errors.All(error => error.Code != "CFG005")) LayoutRules.Check(config, model, worldSize, errors);
        return errors;
    }

    /// <summary>What <c>sft</c> and <c>pt</c> cannot do without (CFG008).</summary>
    public static IReadOnlyList<ConfigError> MissingForTraining(TrainingConfig config)
    {
        var errors = new List<ConfigError>();
        if (config.Model is null && config.Load is null)
            errors.Add(new("CFG008", "--model is missing; give the folder of a Hugging Face model, or --load with a checkpoint."));
        if (config.Dataset.Count == 0) errors.Add(new("CFG008", "--dataset is missing; give at least one file, e.g. --dataset train.jsonl."));
        if (config.TrainIters is null && config.MaxEpochs is null)
            errors.Add(new("CFG008", "--train_iters and --max_epochs are both missing; give one of them."));
        return errors;
    }

    /// <summary>Throws all mistakes together: those of the values, of the combination, and of what is not built yet.</summary>
    /// <exception cref="ConfigException">There is at least one.</exception>
    public static void ThrowIfInvalid(TrainingConfig config, ModelConfig? model, int worldSize)
    {
        ConfigError[] errors = [.. Validate(config, model, worldSize), .. UnsupportedValues.Check(config, model)];
        if (errors.Length > 0) throw new ConfigException(errors);
    }
}
