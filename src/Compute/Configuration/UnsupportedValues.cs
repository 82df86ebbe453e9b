namespace Megatron.Compute.Configuration;

/// <summary>
/// The one table of values that the parser knows and the program cannot do yet. Whoever builds the feature deletes its line.
/// What must hold among supported values stands in <see cref="ConfigValidator"/>.
/// </summary>
public static class UnsupportedValues
{
    /// <summary>A supported set of values of one option; any other value is refused.</summary>
    /// <param name="Name">Option.</param>
    /// <param name="Legal">Supported values as <see cref="OptionInfo.Format"/> writes them; "" is "not given".</param>
    /// <param name="Instead">What to do, when it is more than giving a legal value.</param>
    private sealed record Only(string Name, IReadOnlyList<string> Legal, string Instead = "");

    private const string NoPython = "describe data and templates by options instead: this program runs no Python";
    private const string LocalOnly = "give a local folder: nothing is fetched from a hub yet";

    private static readonly Only[] Table =
    [
        // Base
        new("model_revision", [""], LocalOnly),
        new("use_hf", ["false"], LocalOnly),
        new("hub_token", [""], LocalOnly),
        new("train_type", ["full"]),
        new("custom_register_path", [""], NoPython),
        new("external_plugins", [""], NoPython),
        new("model_kwargs", [""]),
        new("device_map", [""], "use the parallel sizes instead"),
        new("max_memory", [""]),
        new("init_strategy", [""]),
        new("task_type", ["causal_lm"]),
        new("num_labels", [""]),
        new("problem_type", [""]),

        // Data
        new("download_mode", ["reuse_dataset_if_exists"]),
        new("custom_dataset_info", [""]),

        // Template
        new("loss_scale", ["default", "last_round", "all", "ignore_empty_think"]),
        new("agent_template", ["", "hermes"]),
        new("template_backend", ["swift"]),
        new("max_pixels", [""]),
        new("norm_bbox", [""]),
        new("sequence_parallel_size", ["1"], "use --context_parallel_size"),

        // Checkpoint
        new("ckpt_format", ["torch_dist"], "torch and zarr files are never read or written: they can run code"),

        // Distributed
        new("cp_comm_type", ["p2p", "a2a"]),

        // Logging
        new("logging_level", [""]),
        new("report_to", ["", "none", "tensorboard"], "use tensorboard, whose files other trackers import"),
        new("wandb_project", [""], "read logging.jsonl"),
        new("wandb_exp_name", [""], "read logging.jsonl"),
        new("wandb_save_dir", [""], "read logging.jsonl"),

        // Mixed precision
        new("apply_query_key_layer_scaling", ["", "false"]),
        new("attention_softmax_in_fp32", ["true"]),

        // Model
        new("position_embedding_type", ["rope"]),
        new("rotary_percent", ["1"]),
        new("normalization", ["RMSNorm"]),
        new("swiglu", ["", "true"]),
        new("disable_bias_linear", ["", "true"]),

        // Mixture of experts
        new("moe_router_load_balancing_type", ["aux_loss", "seq_aux_loss", "none"]),
        new("moe_expert_capacity_factor", [""]),
        new("moe_token_dispatcher_type", ["alltoall"]),

        // Run form, place
        new("devices", [""]),

        // Inference and export
        new("adapters", [""]),
        new("ckpt_dir", [""], "use --model"),
        new("infer_backend", ["pt"]),
        new("num_beams", ["1"]),
        new("metric", ["", "acc"]),
        new("logprobs", ["false"]),
        new("top_logprobs", [""]),
        new("thread_count", [""], "use --max_shard_size to choose the size of the files"),
        new("safe_serialization", ["true"]),
        new("merge_lora", ["false"]),
        new("push_to_hub", ["false"]),
        new("hub_model_id", [""]),
        new("hub_private_repo", ["false"]),
        new("commit_message", [""]),
        new("quant_method", [""]),
        new("quant_bits", [""]),
        new("to_ollama", ["false"]),
    ];

    private static readonly string[] RecomputeModules = ["core_attn", "mlp", "moe", "moe_act", "layernorm"];

    private static readonly Dictionary<string, Only> ByName = Table.ToDictionary(rule => rule.Name, StringComparer.Ordinal);

    /// <summary>CFG004 for each option that holds a value which cannot be done yet.</summary>
    /// <param name="config">The run.</param>
    /// <param name="model">The resolved architecture; null when it is not known yet.</param>
    public static IReadOnlyList<ConfigError> Check(TrainingConfig config, ModelConfig? model)
    {
        var errors = new List<ConfigError>();
        foreach (var rule in Table)
        {
            var option = OptionCatalog.Get(rule.Name);
            var value = option.Format(option.Get(config));
            if (!rule.Legal.Contains(value, StringComparer.Ordinal)) errors.Add(Refuse($"--{rule.Name} = {value}", Remedy(rule)));
        }

        errors.AddRange(config.RecomputeModules.Except(RecomputeModules).Select(module =>
            Refuse($"--recompute_modules = {module}", $"choose among {OptionValue.Alternatives(RecomputeModules)}")));
        if (model?.Moe is { } moe && !model.Architecture.Contains("Moe", StringComparison.Ordinal))
            errors.Add(Refuse($"--num_experts = {moe.NumExperts} with {model.Architecture}", "leave it out or choose a model with experts"));
        return errors;
    }

    /// <summary>The values of an option that can be done today, as one writes them; null when all can.</summary>
    public static IReadOnlyList<string>? LegalValues(string name) => ByName.GetValueOrDefault(name)?.Legal;

    private static string Remedy(Only rule)
    {
        if (rule.Instead.Length > 0) return rule.Instead;
        var words = rule.Legal.Where(word => word.Length > 0).ToArray();
        return words.Length == 0 ? "leave the option out" : $"use {OptionValue.Alternatives(words)}";
    }

    private static ConfigError Refuse(string what, string remedy) => new("CFG004", $"{what} is not supported yet; {remedy}.");
}
