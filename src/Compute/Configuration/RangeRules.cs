using System.Globalization;

namespace Megatron.Compute.Configuration;

/// <summary>Ranges of single options. NaN and infinities are in no range.</summary>
internal static class RangeRules
{
    /// <summary>Legal interval of one option; a bound that is not itself legal is open.</summary>
    private sealed record Range(string Name, double Least, double Most, bool LeastIsOpen = false, bool MostIsOpen = false)
    {
        public bool Holds(double value) =>
            double.IsFinite(value)
            && (LeastIsOpen ? value > Least : value >= Least)
            && (MostIsOpen ? value < Most : value <= Most);

        public string Sentence()
        {
            var least = Least.ToString(CultureInfo.InvariantCulture);
            var most = Most.ToString(CultureInfo.InvariantCulture);
            var from = LeastIsOpen ? $"above {least}" : $"{least} or more";
            if (double.IsInfinity(Most)) return $"give a finite number {from}";
            return $"give a number {from} and {(MostIsOpen ? $"below {most}" : $"at most {most}")}";
        }
    }

    private static Range Positive(string name) => new(name, 0, double.PositiveInfinity, LeastIsOpen: true);
    private static Range AtLeast(string name, double least) => new(name, least, double.PositiveInfinity);
    private static Range Share(string name) => new(name, 0, 1);
    private static Range BelowOne(string name) => new(name, 0, 1, MostIsOpen: true);

    private static readonly Range[] Ranges =
    [
        AtLeast("micro_batch_size", 1), AtLeast("global_batch_size", 1), AtLeast("recompute_num_layers", 1), AtLeast("train_iters", 1),
        AtLeast("log_interval", 1), Share("optimizer_offload_fraction"), AtLeast("manual_gc_interval", 0), AtLeast("seed", 0),
        AtLeast("num_workers", 0), AtLeast("seq_length", 1),
        AtLeast("lr", 0), AtLeast("min_lr", 0), AtLeast("lr_decay_iters", 1), AtLeast("lr_warmup_iters", 0), BelowOne("lr_warmup_fraction"),
        AtLeast("weight_decay", 0), AtLeast("clip_grad", 0), BelowOne("adam_beta1"), BelowOne("adam_beta2"), Positive("adam_eps"),
        BelowOne("sgd_momentum"),
        AtLeast("max_restarts", 0), AtLeast("save_interval", 1), AtLeast("save_total_limit", 1),
        AtLeast("tensor_model_parallel_size", 1), AtLeast("pipeline_model_parallel_size", 1), AtLeast("context_parallel_size", 1),
        AtLeast("expert_model_parallel_size", 1), AtLeast("expert_tensor_parallel_size", 1), AtLeast("sequence_parallel_size", 1),
        AtLeast("decoder_first_pipeline_num_layers", 1), AtLeast("decoder_last_pipeline_num_layers", 1),
        AtLeast("virtual_pipeline_model_parallel_size", 1), AtLeast("num_layers_per_virtual_pipeline_stage", 1),
        AtLeast("distributed_timeout_minutes", 1), AtLeast("ddp_timeout", 1), AtLeast("logical_data_shards", 1), AtLeast("ddp_bucket_size", 1),
        AtLeast("peer_snapshot_interval", 0),
        AtLeast("tensorboard_log_interval", 1), AtLeast("tensorboard_queue_size", 1), new("logging_level", 0, 50),
        AtLeast("eval_iters", -1), AtLeast("eval_interval", 1),
        AtLeast("initial_loss_scale", 1), Positive("min_loss_scale"), AtLeast("loss_scale_window", 1), AtLeast("hysteresis", 1),
        AtLeast("num_layers", 1), AtLeast("hidden_size", 1), AtLeast("ffn_hidden_size", 1), AtLeast("num_attention_heads", 1),
        AtLeast("num_query_groups", 1), AtLeast("kv_channels", 1), AtLeast("max_position_embeddings", 1), AtLeast("padded_vocab_size", 1),
        new("rotary_base", 1, double.PositiveInfinity, LeastIsOpen: true), new("rotary_percent", 0, 1, LeastIsOpen: true),
        Positive("norm_epsilon"),
        BelowOne("attention_dropout"), BelowOne("hidden_dropout"), Positive("init_method_std"),
        AtLeast("num_experts", 1), AtLeast("moe_ffn_hidden_size", 1), AtLeast("moe_shared_expert_intermediate_size", 0),
        AtLeast("moe_router_topk", 1), AtLeast("moe_aux_loss_coeff", 0), AtLeast("moe_z_loss_coeff", 0), Positive("moe_expert_capacity_factor"),
        AtLeast("max_epochs", 1), AtLeast("packing_length", 1), AtLeast("row_padding_multiple", 1), AtLeast("show_samples", 0), AtLeast("max_length", 1), AtLeast("max_pixels", 1), AtLeast("num_labels", 1),
        BelowOne("split_dataset_ratio"), AtLeast("data_seed", 0), AtLeast("dataset_num_proc", 1), AtLeast("shuffle_buffer_size", 1),
        AtLeast("max_new_tokens", 1), AtLeast("temperature", 0), AtLeast("top_k", 1), new("top_p", 0, 1, LeastIsOpen: true),
        Positive("repetition_penalty"), AtLeast("num_beams", 1), AtLeast("top_logprobs", 0), AtLeast("max_batch_size", 1),
        AtLeast("val_dataset_sample", 1), AtLeast("thread_count", 1), AtLeast("quant_bits", 1),
    ];

    /// <summary>Adds CFG005 for each option out of its range.</summary>
    internal static void Check(TrainingConfig config, List<ConfigError> errors)
    {
        foreach (var range in Ranges)
        {
            var option = OptionCatalog.Get(range.Name);
            var value = option.Get(config);
            if (value is null || range.Holds(Convert.ToDouble(value, CultureInfo.InvariantCulture))) continue;
            errors.Add(new("CFG005", $"--{range.Name} = {option.Format(value)} is out of range; {range.Sentence()}."));
        }

        CheckProbabilities(config, errors);
        CheckTexts(config, errors);
    }

    private static void CheckProbabilities(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.InterleaveProb.Count == 0) return;
        var shown = OptionCatalog.Get("interleave_prob").Format(config.InterleaveProb);
        if (config.InterleaveProb.Any(share => !(share >= 0 && share <= 1)) || Math.Abs(config.InterleaveProb.Sum() - 1) > 1e-6)
            errors.Add(new("CFG005", $"--interleave_prob = {shown} are no probabilities; give numbers from 0 to 1 whose sum is 1."));
        else if (config.InterleaveProb.Count != config.Dataset.Count)
            errors.Add(new("CFG006", $"--interleave_prob = {shown} does not fit {config.Dataset.Count} data sets; give one number per --dataset."));
    }

    private static readonly string[] Paths =
        ["model", "tokenizer", "save", "load", "mcore_model", "output_dir", "tensorboard_dir", "result_path", "golden", "dump", "dataset_cache_dir", "report_path"];

    /// <summary>Texts with a form of their own.</summary>
    private static void CheckTexts(TrainingConfig config, List<ConfigError> errors)
    {
        errors.AddRange(Paths.Where(name => OptionCatalog.Get(name).Get(config) is "")
            .Select(name => new ConfigError("CFG005", $"--{name} is empty; give a path or leave it out.")));
        if (!DateTime.TryParseExact(config.DateString, "d MMM yyyy", CultureInfo.InvariantCulture, DateTimeStyles.None, out _))
            errors.Add(new("CFG005", $"--date_string = {config.DateString} is no date; give one such as \"26 Jul 2024\"."));
        if (!IsSize(config.MaxShardSize))
            errors.Add(new("CFG005", $"--max_shard_size = {config.MaxShardSize} is no size; give one such as 500MB or 5GB."));
        if (config.Devices is { } devices && !IsDeviceList(devices))
            errors.Add(new("CFG005", $"--devices = {devices} is no list of device numbers; give one such as 0,1 with each number once."));
        if (config.JobId is { } job && !(job.Length is > 0 and <= 128 && char.IsAsciiLetterOrDigit(job[0]) && job.All(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '_' or '.')))
            errors.Add(new("CFG005", $"--job_id = {job} is no name; use 1 to 128 letters, digits, '-', '_' and '.', the first a letter or digit."));
    }

    private static bool IsSize(string text)
    {
        string[] units = ["KB", "MB", "GB", "TB"];
        var unit = units.FirstOrDefault(suffix => text.EndsWith(suffix, StringComparison.OrdinalIgnoreCase));
        return unit is not null
            && double.TryParse(text[..^unit.Length], NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var number)
            && number > 0 && double.IsFinite(number);
    }

    private static bool IsDeviceList(string text)
    {
        var parts = text.Split(',');
        return parts.All(part => int.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out _)) && parts.Distinct().Count() == parts.Length;
    }
}
