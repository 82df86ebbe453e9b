using System.Globalization;
using System.Numerics;

namespace Megatron.Compute.Configuration;

/// <summary>
/// Sizes that must divide (CFG007): the model by the parallel degrees, the ranks by the degrees, the global batch by what one step takes.
/// Every message names legal values, and those fit all divisions of that degree at once.
/// </summary>
internal static class LayoutRules
{
    /// <summary>A size of the model and its name as an option; null sizes are not known yet.</summary>
    private readonly record struct Size(string Name, int? Value);

    internal static void Check(TrainingConfig config, ModelConfig? model, int worldSize, List<ConfigError> errors)
    {
        CheckModel(config, model, errors);
        CheckTensorParallel(config, model, errors);
        CheckPipeline(config, model, errors);
        CheckSequence(config, model, errors);
        CheckContextParallel(config, model, errors);
        CheckExperts(config, model, worldSize, errors);
        CheckRanksAndBatch(config, worldSize, errors);
    }

    private static void CheckModel(TrainingConfig config, ModelConfig? model, List<ConfigError> errors)
    {
        var heads = model?.NumAttentionHeads ?? config.NumAttentionHeads;
        var groups = model?.NumQueryGroups ?? config.NumQueryGroups;
        var hidden = model?.HiddenSize ?? config.HiddenSize;
        var channels = model?.KvChannels ?? config.KvChannels;
        if (heads is { } h && groups is { } g && h % g != 0) errors.Add(DoesNotDivide(new("num_query_groups", g), new("num_attention_heads", h), h));
        if (channels is null && heads is { } n && hidden is { } width && width % n != 0)
            errors.Add(DoesNotDivide(new("num_attention_heads", n), new("hidden_size", width), width));
        if (channels is { } size && size % 2 != 0)
            Add(errors, $"--kv_channels = {size} is odd and rotary embedding turns channels in pairs; choose {size - 1} or {size + 1}.");
        var limit = model?.MaxPositionEmbeddings ?? config.MaxPositionEmbeddings;
        var (name, length) = config.SeqLength is not null ? ("seq_length", config.SeqLength) : ("max_length", config.MaxLength);
        if (limit is { } most && length is { } tokens && tokens > most)
            Add(errors,
                $"--{name} = {tokens} is above max_position_embeddings = {most}; give at most {most}, or extend the model with "
                + "--rope_scaling and --max_position_embeddings.");
        if ((model?.Moe?.TopK ?? config.MoeRouterTopk) is { } top && (model?.Moe?.NumExperts ?? config.NumExperts) is { } experts && top > experts)
            Add(errors, $"--moe_router_topk = {top} is above num_experts = {experts}; give at most {experts}.");
    }

    private static void CheckTensorParallel(TrainingConfig config, ModelConfig? model, List<ConfigError> errors)
    {
        Size[] sizes =
        [
            new("num_attention_heads", model?.NumAttentionHeads ?? config.NumAttentionHeads),
            new("num_query_groups", model?.NumQueryGroups ?? config.NumQueryGroups),
            new("ffn_hidden_size", model?.FfnHiddenSize ?? config.FfnHiddenSize),
            new("moe_shared_expert_intermediate_size", model?.Moe?.SharedExpertFfnHiddenSize ?? config.MoeSharedExpertIntermediateSize),
        ];
        CheckDivides(new("tensor_model_parallel_size", config.TensorModelParallelSize), sizes, errors);
    }

    private static void CheckPipeline(TrainingConfig config, ModelConfig? model, List<ConfigError> errors)
    {
        var stages = config.PipelineModelParallelSize;
        if (stages == 1 || (model?.NumLayers ?? config.NumLayers) is not { } layers) return;
        var first = config.DecoderFirstPipelineNumLayers;
        var last = config.DecoderLastPipelineNumLayers;
        var evenStages = stages - (first is null ? 0 : 1) - (last is null ? 0 : 1);
        var evenLayers = layers - (first ?? 0) - (last ?? 0);
        if (first is null && last is null)
        {
            if (layers % stages != 0)
                Add(errors,
                    $"--pipeline_model_parallel_size = {stages} does not divide num_layers = {layers}; choose "
                    + $"{Divisors(layers, stages)}, or set decoder_first_pipeline_num_layers or decoder_last_pipeline_num_layers.");
        }
        else if (evenLayers < evenStages || (evenStages == 0 ? evenLayers != 0 : evenLayers % evenStages != 0))
        {
            var given = $"decoder_first_pipeline_num_layers = {Shown(first)} and decoder_last_pipeline_num_layers = {Shown(last)}";
            Add(errors,
                $"--{given} leave {evenLayers} of num_layers = {layers} for {evenStages} other stages, which is no equal share of "
                + "1 or more; change them.");
            return;
        }

        if (evenStages > 0) CheckChunks(config, evenLayers / evenStages, errors);
        foreach (var given in (int?[])[first, last])
            if (given is { } layersOfStage) CheckChunks(config, layersOfStage, errors);
    }

    /// <summary>Model chunks of one stage, and the micro-batches that an interleaved schedule takes together.</summary>
    private static void CheckChunks(TrainingConfig config, int layersPerStage, List<ConfigError> errors)
    {
        if (config.VirtualPipelineModelParallelSize is { } chunks && layersPerStage % chunks != 0)
            errors.Add(DoesNotDivide(new("virtual_pipeline_model_parallel_size", chunks), new("the layers of a stage", layersPerStage), layersPerStage));
        if (config.NumLayersPerVirtualPipelineStage is { } layers && layersPerStage % layers != 0)
            errors.Add(DoesNotDivide(new("num_layers_per_virtual_pipeline_stage", layers), new("the layers of a stage", layersPerStage), layersPerStage));
    }

    private static void CheckSequence(TrainingConfig config, ModelConfig? model, List<ConfigError> errors)
    {
        var (name, length) = config.SeqLength is not null ? ("seq_length", config.SeqLength)
            : config.MaxLength is not null ? ("max_length", config.MaxLength)
            : ("max_position_embeddings", model?.MaxPositionEmbeddings ?? config.MaxPositionEmbeddings);
        if (length is not { } tokens) return;
        var ranks = config.ContextParallelSize;
        if (ranks > 1 && tokens % (2L * ranks) != 0)
            Add(errors,
                $"--{name} = {tokens} is not a multiple of 2 × context_parallel_size = {2L * ranks}; choose "
                + $"{Multiples(tokens, 2L * ranks)}.");
        var tensorRanks = config.TensorModelParallelSize;
        if (config.SequenceParallel && tokens % ((long)tensorRanks * ranks) != 0)
            Add(errors,
                $"--{name} = {tokens} is not a multiple of tensor × context parallel size = {(long)tensorRanks * ranks}, which "
                + $"sequence_parallel needs; choose {Multiples(tokens, (long)tensorRanks * ranks)}.");
    }

    /// <summary>The all-to-all deals the heads of a tensor-parallel rank out; the ring needs nothing of them.</summary>
    private static void CheckContextParallel(TrainingConfig config, ModelConfig? model, List<ConfigError> errors)
    {
        var (ranks, tensorRanks) = (config.ContextParallelSize, config.TensorModelParallelSize);
        if (ranks == 1 || config.CpCommType != "a2a") return;
        int?[] sizes = [model?.NumAttentionHeads ?? config.NumAttentionHeads, model?.NumQueryGroups ?? config.NumQueryGroups];
        if (sizes is not [{ } heads, { } groups] || heads % tensorRanks != 0 || groups % tensorRanks != 0) return;
        var common = (int)BigInteger.GreatestCommonDivisor(heads / tensorRanks, groups / tensorRanks);
        if (common % ranks == 0) return;
        var perRank = tensorRanks == 1 ? "" : Text($" / tensor_model_parallel_size = {heads / tensorRanks} and {groups / tensorRanks}");
        Add(errors,
            $"--context_parallel_size = {ranks} with --cp_comm_type = a2a must divide num_attention_heads = {heads} and num_query_groups = {groups}{perRank}; "
            + $"choose {Divisors(common, ranks)}, or --cp_comm_type p2p.");
    }

    private static void CheckExperts(TrainingConfig config, ModelConfig? model, int worldSize, List<ConfigError> errors)
    {
        if (config.MoeSharedExpertOverlap && model is not null && model.Moe?.SharedExpertFfnHiddenSize is null)
            Add(errors, "--moe_shared_expert_overlap = true needs a model with a shared expert and this one has none; leave it out.");
        var ranks = config.ExpertModelParallelSize;
        var experts = model?.Moe?.NumExperts ?? config.NumExperts;
        if (experts is null)
        {
            if (ranks > 1 && model is not null)
                Add(errors, $"--expert_model_parallel_size = {ranks} needs a model with experts and this one has none; use 1.");
            return;
        }

        CheckDivides(new("expert_model_parallel_size", ranks), [new("num_experts", experts)], errors);
        var tensorRanks = config.ExpertTensorParallelSize ?? config.TensorModelParallelSize;
        var tensorName = config.ExpertTensorParallelSize is null ? "tensor_model_parallel_size" : "expert_tensor_parallel_size";
        CheckDivides(new(tensorName, tensorRanks), [new("moe_ffn_hidden_size", model?.Moe?.FfnHiddenSize ?? config.MoeFfnHiddenSize)], errors);
        var grid = (long)tensorRanks * ranks * config.PipelineModelParallelSize;
        if (worldSize % grid != 0)
            Add(errors,
                $"{worldSize} ranks are not a multiple of expert tensor × expert × pipeline parallel size = {tensorRanks} × "
                + $"{ranks} × {config.PipelineModelParallelSize} = {grid}; start {Multiples(worldSize, grid)} ranks.");
    }

    private static void CheckRanksAndBatch(TrainingConfig config, int worldSize, List<ConfigError> errors)
    {
        var grid = (long)config.TensorModelParallelSize * config.PipelineModelParallelSize * config.ContextParallelSize;
        if (worldSize < 1 || worldSize % grid != 0)
        {
            Add(errors,
                $"{worldSize} ranks are not a multiple of tensor × pipeline × context parallel size = "
                + $"{config.TensorModelParallelSize} × {config.PipelineModelParallelSize} × {config.ContextParallelSize} = {grid}; "
                + $"start {Multiples(worldSize, grid)} ranks.");
            return;
        }

        var replicas = worldSize / grid;
        var perStep = config.MicroBatchSize * replicas;
        if (config.GlobalBatchSize % perStep != 0)
        {
            Add(errors,
                $"--global_batch_size = {config.GlobalBatchSize} is not a multiple of micro_batch_size × data-parallel size = "
                + $"{config.MicroBatchSize} × {replicas} = {perStep}; choose {Multiples(config.GlobalBatchSize, perStep)}.");
            return;
        }

        CheckMicroBatches(config, perStep, replicas, errors);
    }

    private static void CheckMicroBatches(TrainingConfig config, long perStep, long replicas, List<ConfigError> errors)
    {
        var stages = config.PipelineModelParallelSize;
        var interleaved = config.VirtualPipelineModelParallelSize > 1 || config.NumLayersPerVirtualPipelineStage is not null;
        if (interleaved && config.GlobalBatchSize / perStep % stages != 0)
            Add(errors,
                $"--global_batch_size = {config.GlobalBatchSize} gives {config.GlobalBatchSize / perStep} micro-batches, which the "
                + $"interleaved schedule needs in multiples of pipeline_model_parallel_size = {stages}; choose "
                + $"{Multiples(config.GlobalBatchSize, perStep * stages)}.");
        if (config.LogicalDataShards is not { } shards) return;
        if (shards % replicas != 0)
            Add(errors,
                $"--logical_data_shards = {shards} is not a multiple of the data-parallel size = {replicas}; choose "
                + $"{Multiples(shards, replicas)}.");
        else if (config.GlobalBatchSize % ((long)config.MicroBatchSize * shards) != 0)
            Add(errors,
                $"--logical_data_shards = {shards} does not divide the global batch of "
                + $"{config.GlobalBatchSize / config.MicroBatchSize} micro-batches; choose "
                + $"{Divisors(config.GlobalBatchSize / config.MicroBatchSize, shards)}.");
        else if (!int.IsPow2(shards))
        {
            var legal = Enumerable.Range(0, 31).Select(bit => 1L << bit)
                .Where(power => power % replicas == 0 && config.GlobalBatchSize / config.MicroBatchSize % power == 0).Select(power => Text($"{power}")).ToArray();
            Add(errors,
                $"--logical_data_shards = {shards} is no power of two, which the addition in pairs needs; "
                + $"{(legal.Length == 0 ? "leave it out" : $"choose {OptionValue.Alternatives(legal)}")}.");
        }
    }

    /// <summary>CFG007 for each known size that <paramref name="degree"/> does not divide; the remedies divide all of them.</summary>
    private static void CheckDivides(Size degree, Size[] sizes, List<ConfigError> errors)
    {
        if (degree.Value is not { } ranks || ranks == 1) return;
        var known = sizes.Where(size => size.Value is > 0).ToArray();
        var common = known.Aggregate(0, (divisor, size) => (int)BigInteger.GreatestCommonDivisor(divisor, size.Value ?? 0));
        errors.AddRange(known.Where(size => size.Value % ranks != 0).Select(size => DoesNotDivide(degree, size, common)));
    }

    private static ConfigError DoesNotDivide(Size degree, Size size, int common) => new("CFG007",
        Text($"--{degree.Name} = {degree.Value} does not divide {size.Name} = {size.Value}; choose {Divisors(common, degree.Value ?? 1)}."));

    /// <summary>
    /// Divisors of <paramref name="number"/>: all of them when they are eight at most, else the four nearest to <paramref
    /// name="wanted"/>.
    /// </summary>
    private static string Divisors(int number, int wanted)
    {
        var divisors = Enumerable.Range(1, (int)Math.Sqrt(number)).Where(small => number % small == 0)
            .SelectMany(small => new[] { small, number / small }).Distinct().Order().ToArray();
        if (divisors.Length > 8)
            divisors = [.. divisors.OrderBy(divisor => Math.Abs((long)divisor - wanted)).ThenBy(divisor => divisor).Take(4).Order()];
        return OptionValue.Alternatives([.. divisors.Select(divisor => divisor.ToString(CultureInfo.InvariantCulture))]);
    }

    /// <summary>The nearest positive multiples of <paramref name="unit"/> below and above.</summary>
    private static string Multiples(long number, long unit)
    {
        var below = number / unit * unit;
        return below <= 0 ? Text($"{unit}") : Text($"{below} or {below + unit}");
    }

    private static string Shown(int? number) => number?.ToString(CultureInfo.InvariantCulture) ?? "(not given)";

    /// <summary>Whole numbers look the same in every culture, so plain interpolation will do.</summary>
    private static void Add(List<ConfigError> errors, string message) => errors.Add(new("CFG007", message));

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
