using System.Globalization;

namespace Megatron.Compute.Configuration;

/// <summary>Options that contradict or need each other (CFG006), whatever the model and the number of ranks.</summary>
internal static class CombinationRules
{
    internal static void Check(TrainingConfig config, List<ConfigError> errors)
    {
        CheckRecompute(config, errors);
        CheckSchedule(config, errors);
        CheckPrecision(config, errors);
        CheckOverlap(config, errors);
        CheckAttention(config, errors);
        CheckPipeline(config, errors);
        CheckCudaGraph(config, errors);
        CheckRunForm(config, errors);
        CheckOutputs(config, errors);
    }

    private static void CheckRecompute(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.RecomputeGranularity == "full")
        {
            if (config.RecomputeMethod is null)
                Add(errors, "--recompute_granularity = full needs --recompute_method; give uniform or block.");
            if (config.RecomputeNumLayers is null)
                Add(errors, "--recompute_granularity = full needs --recompute_num_layers; give 1 or more.");
            return;
        }

        if (config.RecomputeMethod is { } method)
            Add(errors,
                $"--recompute_method = {method} does not go with --recompute_granularity = {config.RecomputeGranularity}; leave it out or use full.");
        if (config.RecomputeNumLayers is { } layers)
            Add(errors,
                Text($"--recompute_num_layers = {layers} does not go with --recompute_granularity = {config.RecomputeGranularity}; leave it out or use full."));
        if (config.RecomputeGranularity == "selective" && config.RecomputeModules.Count == 0)
            Add(errors, "--recompute_granularity = selective with no --recompute_modules does nothing; name modules or use none.");
    }

    private static void CheckSchedule(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.Lr >= 0 && config.MinLr > config.Lr)
            Add(errors, Text($"--min_lr = {config.MinLr} is above --lr = {config.Lr}; give at most {config.Lr}."));
        if (config.LrWarmupFraction is { } fraction && config.LrWarmupIters > 0)
            Add(errors,
                Text($"--lr_warmup_fraction = {fraction} and --lr_warmup_iters = {config.LrWarmupIters} say the same twice; give one of them."));
        var decay = config.LrDecayIters ?? config.TrainIters;
        if (decay is { } length && config.LrWarmupIters > 0 && config.LrWarmupIters >= length)
        {
            var name = config.LrDecayIters is null ? "train_iters" : "lr_decay_iters";
            Add(errors, Text($"--lr_warmup_iters = {config.LrWarmupIters} is not below --{name} = {length}; give at most {length - 1}."));
        }
    }

    private static void CheckPrecision(TrainingConfig config, List<ConfigError> errors)
    {
        var fp16 = config.Fp16 == true;
        var bf16 = config.Bf16 == true;
        if (fp16 && bf16) Add(errors, "--fp16 = true and --bf16 = true exclude each other; give one of them.");
        if (config.TorchDtype is { } dtype && !(fp16 && bf16))
        {
            var flag = fp16 ? "fp16" : "bf16";
            var means = fp16 ? "float16" : "bfloat16";
            if ((fp16 || bf16) && dtype != means)
                Add(errors, $"--{flag} = true contradicts --torch_dtype = {dtype}; use --torch_dtype {means} or leave --{flag} out.");
            if (dtype == "float16" && config.Fp16 == false)
                Add(errors,
                    "--fp16 = false contradicts --torch_dtype = float16; give bfloat16 or float32.");
            if (dtype == "bfloat16" && config.Bf16 == false)
                Add(errors,
                    "--bf16 = false contradicts --torch_dtype = bfloat16; give float16 or float32.");
        }

        if (config.MinLossScale > config.InitialLossScale)
            Add(errors,
                Text($"--min_loss_scale = {config.MinLossScale} is above --initial_loss_scale = {config.InitialLossScale}; give at most that."));
        var isFp16 = fp16 || (config.TorchDtype == "float16" && config.Fp16 is null);
        if (isFp16 && config.ExpertModelParallelSize > 1)
            Add(errors,
                Text($"--expert_model_parallel_size = {config.ExpertModelParallelSize} does not go with fp16; use --torch_dtype bfloat16 or 1."));
        if (config.TpCommOverlap && config.Fp8Format is { } format)
            Add(errors, $"--fp8_format = {format} does not go with --tp_comm_overlap = true, which cuts the matrices that are scaled as a whole; leave one out.");
        if (isFp16 && config.Fp8Format is { } fp8) Add(errors, $"--fp8_format = {fp8} does not go with fp16; use --torch_dtype bfloat16.");
    }

    private static void CheckOverlap(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.OverlapParamGather && !config.UseDistributedOptimizer)
            Add(errors, "--overlap_param_gather = true needs the distributed optimizer; use --use_distributed_optimizer true.");
        if (config.OverlapParamGather && !config.OverlapGradReduce)
            Add(errors, "--overlap_param_gather = true needs the overlapped reduction; use --overlap_grad_reduce true.");
        if (config.OverlapGradReduce && config.LogicalDataShards is { } shards)
            Add(errors, Text($"--overlap_grad_reduce = true does not go with --logical_data_shards = {shards}, whose sums begin after the backward; leave one out."));
        if (config.GradReduceInBf16 && config.LogicalDataShards is not null)
            Add(errors, "--grad_reduce_in_bf16 = true does not go with --logical_data_shards, which keeps every bit; leave one out.");
        if (config.TpCommOverlap && !config.SequenceParallel)
            Add(errors, "--tp_comm_overlap = true needs sequence parallelism; use --sequence_parallel true.");
        if (config.SequenceParallel && config.TensorModelParallelSize == 1)
            Add(errors,
                "--sequence_parallel = true needs --tensor_model_parallel_size above 1, which is 1; raise it or leave sequence_parallel out.");
    }

    private static void CheckAttention(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.AttentionBackend == "local")
            Add(errors, "--attention_backend = local has no meaning without Megatron's local layers; use unfused, or auto.");
        if (config.UseFlashAttn && config.AttentionBackend is not ("flash" or "auto"))
            Add(errors,
                $"--use_flash_attn = true contradicts --attention_backend = {config.AttentionBackend}; use flash or leave use_flash_attn out.");
        if (config.CpCommType != "p2p" && config.ContextParallelSize == 1)
            Add(errors,
                $"--cp_comm_type = {config.CpCommType} needs --context_parallel_size above 1, which is 1; raise it or leave cp_comm_type out.");
        if (config is { AttentionBackend: "fused", ContextParallelSize: > 1, CpCommType: "p2p" })
            Add(errors,
                "--attention_backend = fused does not go with --cp_comm_type = p2p, which merges what the kernel does not give; use flash, unfused or auto, or cp_comm_type a2a.");
        if (!config.DeterministicMode) return;
        if (config.AttentionBackend == "fused")
            Add(errors,
                "--deterministic_mode = true does not go with --attention_backend = fused, whose additions have no fixed order; use flash, unfused or auto.");
        if (config.CrossEntropyLossFusion)
            Add(errors, "--deterministic_mode = true does not go with --cross_entropy_loss_fusion = true; leave the fusion out.");
        if (config.TpCommOverlap)
            Add(errors, "--deterministic_mode = true does not go with --tp_comm_overlap = true; leave the overlap out.");
    }

    private static void CheckPipeline(TrainingConfig config, List<ConfigError> errors)
    {
        var chunked = config.VirtualPipelineModelParallelSize is not null ? "virtual_pipeline_model_parallel_size"
            : config.NumLayersPerVirtualPipelineStage is not null ? "num_layers_per_virtual_pipeline_stage" : null;
        if (config.VirtualPipelineModelParallelSize is { } chunks && config.NumLayersPerVirtualPipelineStage is { } layers)
            Add(errors,
                Text($"--virtual_pipeline_model_parallel_size = {chunks} and --num_layers_per_virtual_pipeline_stage = {layers} say the same twice; give one of them."));
        if (chunked is not null && config.VirtualPipelineModelParallelSize != 1 && config.PipelineModelParallelSize == 1)
            Add(errors, $"--{chunked} needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave {chunked} out.");
        if (chunked is not null && config.VirtualPipelineModelParallelSize != 1 && config.PipelineSchedule is not ("auto" or "interleaved"))
            Add(errors, $"--pipeline_schedule = {config.PipelineSchedule} has one model chunk per stage; leave --{chunked} out or use interleaved.");
        if (config.NumLayersPerVirtualPipelineStage is not null && (config.DecoderFirstPipelineNumLayers ?? config.DecoderLastPipelineNumLayers) is not null)
            Add(errors, "--num_layers_per_virtual_pipeline_stage needs stages of equal size; use --virtual_pipeline_model_parallel_size with uneven first or last stages.");
        if (config.PipelineSchedule == "interleaved" && chunked is null)
            Add(errors, "--pipeline_schedule = interleaved needs --virtual_pipeline_model_parallel_size; give 2 or more.");
        if (config.PipelineModelParallelSize > 1) return;
        if (config.DecoderFirstPipelineNumLayers is { } first)
            Add(errors,
                Text($"--decoder_first_pipeline_num_layers = {first} needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave it out."));
        if (config.DecoderLastPipelineNumLayers is { } last)
            Add(errors,
                Text($"--decoder_last_pipeline_num_layers = {last} needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave it out."));
    }

    /// <summary>A recorded step repeats its launches with the same host numbers and talks to nobody.</summary>
    private static void CheckCudaGraph(TrainingConfig config, List<ConfigError> errors)
    {
        if (!config.CudaGraph) return;
        (string Name, int Size)[] degrees =
        [
            ("tensor_model_parallel_size", config.TensorModelParallelSize), ("pipeline_model_parallel_size", config.PipelineModelParallelSize),
            ("context_parallel_size", config.ContextParallelSize), ("expert_model_parallel_size", config.ExpertModelParallelSize),
        ];
        foreach (var (name, size) in degrees)
            if (size > 1) Add(errors, Text($"--cuda_graph = true does not go with --{name} = {size}: a recorded step does not communicate; use 1 or leave cuda_graph out."));
        if (config.Device == "cpu") Add(errors, "--cuda_graph = true needs a GPU; leave it out or use --device cuda.");
        if (config.Packing) Add(errors, "--cuda_graph = true does not go with --packing = true, whose rows have other sample borders in each batch; leave one of them out.");
        if (config.HiddenDropout > 0 || config.AttentionDropout > 0)
            Add(errors, "--cuda_graph = true does not go with dropout, which is drawn anew in each step; use 0 or leave cuda_graph out.");
        if (config.Fp16 == true || config.TorchDtype == "float16")
            Add(errors, "--cuda_graph = true does not go with fp16, whose loss scale changes between steps; use --torch_dtype bfloat16.");
        if (config.LogicalDataShards is > 1)
            Add(errors, Text($"--cuda_graph = true does not go with --logical_data_shards = {config.LogicalDataShards}; leave one of them out."));
    }

    private static void CheckRunForm(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.Streaming && config.TrainIters is null)
            Add(errors, "--streaming = true needs --train_iters, because the size of the data is not known; give it.");
        if (config is { PeerSnapshotInterval: > 0, MaxRestarts: 0 })
            Add(errors, Text($"--peer_snapshot_interval = {config.PeerSnapshotInterval} is of no use with --max_restarts = 0, with which the job ends at its first fault; give --max_restarts, e.g. 10."));
        if (config.PackingLength is { } pack && !config.Packing)
            Add(errors, Text($"--packing_length = {pack} needs --packing true; add it or leave packing_length out."));
        if (config is { Packing: true, PackingLength: { } length, MaxLength: { } longest } && longest > length)
            Add(errors, Text($"--packing_length = {length} is below --max_length = {longest}; give at least {longest}."));
        if (config is { Streaming: true, DataloaderType: not "external" })
            Add(errors, $"--streaming = true does not go with --dataloader_type = {config.DataloaderType}: a stream is read in its own order, again and again; leave dataloader_type out.");
        if (config is { Streaming: true, MaxEpochs: { } epochs })
            Add(errors, Text($"--streaming = true does not go with --max_epochs = {epochs}, because the size of the data is not known; give --train_iters alone."));
        if (config is { Streaming: true, SplitDatasetRatio: > 0, ValDataset.Count: 0 })
            Add(errors, Text($"--streaming = true does not go with --split_dataset_ratio = {config.SplitDatasetRatio}: nothing can be split off a stream; use 0 or give --val_dataset."));
        if (config is { Streaming: true, LazyTokenize: true })
            Add(errors, "--streaming = true encodes rows when they are used anyway; leave --lazy_tokenize out.");
        if (config is { LazyTokenize: true, Packing: true })
            Add(errors, "--lazy_tokenize = true does not go with --packing = true, which must know all lengths; leave one of them out.");
        if (config is { LazyTokenize: true, TruncationStrategy: "split" })
            Add(errors, "--lazy_tokenize = true does not go with --truncation_strategy = split, which makes several samples of a row; use right or leave lazy_tokenize out.");
        if (config.TruncationStrategy == "split" && config.UseChatTemplate)
            Add(errors, "--truncation_strategy = split cuts plain text up and is for megatron pt only; use delete, left or right.");
        if (config.Resume && config.Finetune)
            Add(errors, "--resume = true and --finetune = true exclude each other; give one of them.");
        if (config.OptimizerCpuOffload && config.Optimizer == "sgd")
            Add(errors, "--optimizer_cpu_offload = true does not go with --optimizer = sgd; use adam.");
        var ownExpertGrid = config.ExpertModelParallelSize > 1 ? Text($"--expert_model_parallel_size = {config.ExpertModelParallelSize}")
            : config.ExpertTensorParallelSize is { } expertTensor && expertTensor != config.TensorModelParallelSize ? Text($"--expert_tensor_parallel_size = {expertTensor}") : null;
        if (config.LogicalDataShards is { } shards && ownExpertGrid is not null)
            Add(errors,
                Text($"--logical_data_shards = {shards} does not go with {ownExpertGrid}, which brings the tokens of several shards to one expert at once; leave one of them out."));
        if (config.MoeExpertCapacityFactor is not null && config.MoeTokenDispatcherType == "allgather")
            Add(errors, "--moe_expert_capacity_factor does not go with --moe_token_dispatcher_type = allgather; use alltoall.");
        if (config is { GroupQueryAttention: false, NumQueryGroups: { } groups, NumAttentionHeads: { } heads } && groups < heads)
            Add(errors,
                Text($"--group_query_attention = false contradicts --num_query_groups = {groups} below --num_attention_heads = {heads}; leave it out."));
    }

    private static void CheckOutputs(TrainingConfig config, List<ConfigError> errors)
    {
        if (config.ToMcore && config.ToHf) Add(errors, "--to_mcore = true and --to_hf = true exclude each other; give one of them.");
        if (!config.SaveSafetensors && config.NoSaveOptim)
            Add(errors, "--save_safetensors = false with --no_save_optim = true would save nothing; leave one of them out.");
        if (config.Stream && config.NumBeams > 1)
            Add(errors, Text($"--stream = true does not go with --num_beams = {config.NumBeams}; use 1."));
        if (!string.IsNullOrEmpty(config.WandbProject) && string.IsNullOrEmpty(config.WandbExpName))
            Add(errors, $"--wandb_project = {config.WandbProject} needs --wandb_exp_name; give the run a name.");
        if (config.ReportTo.Contains("none") && config.ReportTo.Count > 1)
            Add(errors, $"--report_to = {string.Join(' ', config.ReportTo)} contradicts itself; give none alone or leave it out.");
        if (config.TopLogprobs is { } top && !config.Logprobs)
            Add(errors, Text($"--top_logprobs = {top} needs --logprobs true; add it."));
    }

    private static void Add(List<ConfigError> errors, string message) => errors.Add(new("CFG006", message));

    private static string Text(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
