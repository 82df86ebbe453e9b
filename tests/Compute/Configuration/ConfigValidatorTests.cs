using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Tests.Configuration;

public sealed class ConfigValidatorTests
{
    private static readonly ModelConfig Dense = new()
    {
        Architecture = "Qwen3ForCausalLM", ModelType = "qwen3", NumLayers = 28, HiddenSize = 1024, FfnHiddenSize = 3072, NumAttentionHeads = 16,
        NumQueryGroups = 8, KvChannels = 128, VocabSize = 151936, MaxPositionEmbeddings = 40960, NormEpsilon = 1e-6, TieWordEmbeddings = true,
        AddQkvBias = false, QkLayerNorm = true, Rotary = new RotaryConfig { Base = 1e6 },
    };

    private static readonly ModelConfig Sparse = Dense with
    {
        Moe = new MoeConfig { NumExperts = 128, FfnHiddenSize = 768, TopK = 8, PreSoftmax = false },
    };

    /// <summary>Options as JSON, ranks, d(ense), s(parse) or n(o) model, the one message.</summary>
    public static TheoryData<string, int, string, string> BadValues => new()
    {
        // Ranges
        { """{"micro_batch_size": 0}""", 1, "d", "CFG005 --micro_batch_size = 0 is out of range; give a finite number 1 or more." },
        { """{"global_batch_size": -4}""", 1, "d", "CFG005 --global_batch_size = -4 is out of range; give a finite number 1 or more." },
        { """{"train_iters": 0}""", 1, "d", "CFG005 --train_iters = 0 is out of range; give a finite number 1 or more." },
        { """{"log_interval": 0}""", 1, "d", "CFG005 --log_interval = 0 is out of range; give a finite number 1 or more." },
        { """{"save_interval": 0}""", 1, "d", "CFG005 --save_interval = 0 is out of range; give a finite number 1 or more." },
        { """{"eval_iters": -2}""", 1, "d", "CFG005 --eval_iters = -2 is out of range; give a finite number -1 or more." },
        { """{"eval_interval": 0}""", 1, "d", "CFG005 --eval_interval = 0 is out of range; give a finite number 1 or more." },
        { """{"lr": -1e-5}""", 1, "d", "CFG005 --lr = -1E-05 is out of range; give a finite number 0 or more." },
        { """{"lr": "NaN"}""", 1, "d", "CFG005 --lr = NaN is out of range; give a finite number 0 or more." },
        { """{"lr": 1e400}""", 1, "d", "CFG005 --lr = Infinity is out of range; give a finite number 0 or more." },
        { """{"min_lr": -1}""", 1, "d", "CFG005 --min_lr = -1 is out of range; give a finite number 0 or more." },
        { """{"lr_warmup_fraction": 1}""", 1, "d", "CFG005 --lr_warmup_fraction = 1 is out of range; give a number 0 or more and below 1." },
        { """{"lr_warmup_iters": -1}""", 1, "d", "CFG005 --lr_warmup_iters = -1 is out of range; give a finite number 0 or more." },
        { """{"weight_decay": -0.1}""", 1, "d", "CFG005 --weight_decay = -0.1 is out of range; give a finite number 0 or more." },
        { """{"clip_grad": "NaN"}""", 1, "d", "CFG005 --clip_grad = NaN is out of range; give a finite number 0 or more." },
        { """{"adam_beta1": 1}""", 1, "d", "CFG005 --adam_beta1 = 1 is out of range; give a number 0 or more and below 1." },
        { """{"adam_beta2": 1.5}""", 1, "d", "CFG005 --adam_beta2 = 1.5 is out of range; give a number 0 or more and below 1." },
        { """{"adam_eps": 0}""", 1, "d", "CFG005 --adam_eps = 0 is out of range; give a finite number above 0." },
        { """{"sgd_momentum": 1}""", 1, "d", "CFG005 --sgd_momentum = 1 is out of range; give a number 0 or more and below 1." },
        { """{"attention_dropout": 1}""", 1, "d", "CFG005 --attention_dropout = 1 is out of range; give a number 0 or more and below 1." },
        { """{"hidden_dropout": -0.1}""", 1, "d", "CFG005 --hidden_dropout = -0.1 is out of range; give a number 0 or more and below 1." },
        { """{"split_dataset_ratio": 1}""", 1, "d", "CFG005 --split_dataset_ratio = 1 is out of range; give a number 0 or more and below 1." },
        { """{"max_length": 0}""", 1, "d", "CFG005 --max_length = 0 is out of range; give a finite number 1 or more." },
        { """{"max_epochs": 0}""", 1, "d", "CFG005 --max_epochs = 0 is out of range; give a finite number 1 or more." },
        { """{"seed": -1}""", 1, "d", "CFG005 --seed = -1 is out of range; give a finite number 0 or more." },
        { """{"tensor_model_parallel_size": 0}""", 1, "d", "CFG005 --tensor_model_parallel_size = 0 is out of range; give a finite number 1 or more." },
        { """{"rotary_percent": 0}""", 1, "d", "CFG005 --rotary_percent = 0 is out of range; give a number above 0 and at most 1." },
        { """{"top_p": 1.1}""", 1, "d", "CFG005 --top_p = 1.1 is out of range; give a number above 0 and at most 1." },
        { """{"date_string": "yesterday"}""", 1, "d", "CFG005 --date_string = yesterday is no date; give one such as \"26 Jul 2024\"." },
        { """{"max_shard_size": "5 apples"}""", 1, "d", "CFG005 --max_shard_size = 5 apples is no size; give one such as 500MB or 5GB." },
        { """{"devices": "0,0"}""", 1, "d", "CFG005 --devices = 0,0 is no list of device numbers; give one such as 0,1 with each number once." },
        { """{"job_id": "../x"}""", 1, "d", "CFG005 --job_id = ../x is no name; use 1 to 128 letters, digits, '-', '_' and '.', the first a letter or digit." },
        { """{"dataset": ["a"], "interleave_prob": [0.7, 0.7]}""", 1, "d",
            "CFG005 --interleave_prob = 0.7 0.7 are no probabilities; give numbers from 0 to 1 whose sum is 1." },
        { """{"dataset": ["a"], "interleave_prob": [0.5, 0.5]}""", 1, "d",
            "CFG006 --interleave_prob = 0.5 0.5 does not fit 1 data sets; give one number per --dataset." },

        // Combinations
        { """{"cuda_graph": true, "packing": true}""", 1, "d",
            "CFG006 --cuda_graph = true does not go with --packing = true, whose rows have other sample borders in each batch; leave one of them out." },
        { """{"cuda_graph": true, "tensor_model_parallel_size": 2}""", 2, "d",
            "CFG006 --cuda_graph = true does not go with --tensor_model_parallel_size = 2: a recorded step does not communicate; use 1 or leave cuda_graph out." },
        { """{"cuda_graph": true, "hidden_dropout": 0.1}""", 1, "d",
            "CFG006 --cuda_graph = true does not go with dropout, which is drawn anew in each step; use 0 or leave cuda_graph out." },
        { """{"cuda_graph": true, "torch_dtype": "float16"}""", 1, "d",
            "CFG006 --cuda_graph = true does not go with fp16, whose loss scale changes between steps; use --torch_dtype bfloat16." },
        { """{"cuda_graph": true, "device": "cpu"}""", 1, "d",
            "CFG006 --cuda_graph = true needs a GPU; leave it out or use --device cuda." },
        { """{"recompute_granularity": "full", "recompute_num_layers": 1}""", 1, "d",
            "CFG006 --recompute_granularity = full needs --recompute_method; give uniform or block." },
        { """{"recompute_granularity": "full", "recompute_method": "block"}""", 1, "d",
            "CFG006 --recompute_granularity = full needs --recompute_num_layers; give 1 or more." },
        { """{"recompute_method": "uniform"}""", 1, "d",
            "CFG006 --recompute_method = uniform does not go with --recompute_granularity = selective; leave it out or use full." },
        { """{"recompute_granularity": "none", "recompute_num_layers": 2}""", 1, "d",
            "CFG006 --recompute_num_layers = 2 does not go with --recompute_granularity = none; leave it out or use full." },
        { """{"recompute_modules": []}""", 1, "d",
            "CFG006 --recompute_granularity = selective with no --recompute_modules does nothing; name modules or use none." },
        { """{"lr": 1e-5, "min_lr": 1e-4}""", 1, "d", "CFG006 --min_lr = 0.0001 is above --lr = 1E-05; give at most 1E-05." },
        { """{"lr_warmup_fraction": 0.1, "lr_warmup_iters": 3}""", 1, "d",
            "CFG006 --lr_warmup_fraction = 0.1 and --lr_warmup_iters = 3 say the same twice; give one of them." },
        { """{"train_iters": 10, "lr_warmup_iters": 10}""", 1, "d",
            "CFG006 --lr_warmup_iters = 10 is not below --train_iters = 10; give at most 9." },
        { """{"train_iters": 10, "lr_decay_iters": 5, "lr_warmup_iters": 6}""", 1, "d",
            "CFG006 --lr_warmup_iters = 6 is not below --lr_decay_iters = 5; give at most 4." },
        { """{"fp16": true, "bf16": true}""", 1, "d", "CFG006 --fp16 = true and --bf16 = true exclude each other; give one of them." },
        { """{"fp16": true, "torch_dtype": "bfloat16"}""", 1, "d",
            "CFG006 --fp16 = true contradicts --torch_dtype = bfloat16; use --torch_dtype float16 or leave --fp16 out." },
        { """{"bf16": true, "torch_dtype": "float32"}""", 1, "d",
            "CFG006 --bf16 = true contradicts --torch_dtype = float32; use --torch_dtype bfloat16 or leave --bf16 out." },
        { """{"bf16": false, "torch_dtype": "bfloat16"}""", 1, "d",
            "CFG006 --bf16 = false contradicts --torch_dtype = bfloat16; give float16 or float32." },
        { """{"min_loss_scale": 8, "initial_loss_scale": 4}""", 1, "d",
            "CFG006 --min_loss_scale = 8 is above --initial_loss_scale = 4; give at most that." },
        { """{"fp16": true, "expert_model_parallel_size": 2}""", 2, "s",
            "CFG006 --expert_model_parallel_size = 2 does not go with fp16; use --torch_dtype bfloat16 or 1." },
        { """{"logical_data_shards": 4, "expert_model_parallel_size": 2}""", 4, "s",
            "CFG006 --logical_data_shards = 4 does not go with --expert_model_parallel_size = 2, which brings the tokens of several shards to one expert at once; leave one of them out." },
        { """{"logical_data_shards": 4, "expert_tensor_parallel_size": 2}""", 4, "s",
            "CFG006 --logical_data_shards = 4 does not go with --expert_tensor_parallel_size = 2, which brings the tokens of several shards to one expert at once; leave one of them out." },
        { """{"overlap_param_gather": true, "overlap_grad_reduce": true, "use_distributed_optimizer": false}""", 1, "d",
            "CFG006 --overlap_param_gather = true needs the distributed optimizer; use --use_distributed_optimizer true." },
        { """{"overlap_param_gather": true}""", 1, "d",
            "CFG006 --overlap_param_gather = true needs the overlapped reduction; use --overlap_grad_reduce true." },
        { """{"overlap_grad_reduce": true, "logical_data_shards": 4}""", 1, "d",
            "CFG006 --overlap_grad_reduce = true does not go with --logical_data_shards = 4, whose sums begin after the backward; leave one out." },
        { """{"grad_reduce_in_bf16": true, "logical_data_shards": 4}""", 1, "d",
            "CFG006 --grad_reduce_in_bf16 = true does not go with --logical_data_shards, which keeps every bit; leave one out." },
        { """{"ddp_bucket_size": 0}""", 1, "d", "CFG005 --ddp_bucket_size = 0 is out of range; give a finite number 1 or more." },
        { """{"pipeline_model_parallel_size": 0}""", 1, "d", "CFG005 --pipeline_model_parallel_size = 0 is out of range; give a finite number 1 or more." },
        { """{"context_parallel_size": 0}""", 1, "d", "CFG005 --context_parallel_size = 0 is out of range; give a finite number 1 or more." },
        { """{"expert_model_parallel_size": -1}""", 1, "s", "CFG005 --expert_model_parallel_size = -1 is out of range; give a finite number 1 or more." },
        { """{"expert_tensor_parallel_size": 0}""", 1, "s", "CFG005 --expert_tensor_parallel_size = 0 is out of range; give a finite number 1 or more." },
        { """{"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 0}""", 2, "d",
            "CFG005 --virtual_pipeline_model_parallel_size = 0 is out of range; give a finite number 1 or more." },
        { """{"pipeline_model_parallel_size": 2, "decoder_last_pipeline_num_layers": 0}""", 2, "d",
            "CFG005 --decoder_last_pipeline_num_layers = 0 is out of range; give a finite number 1 or more." },
        { """{"decoder_last_pipeline_num_layers": 2}""", 1, "d",
            "CFG006 --decoder_last_pipeline_num_layers = 2 needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave it out." },
        { """{"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "pipeline_schedule": "zero_bubble"}""", 2, "d",
            "CFG006 --pipeline_schedule = zero_bubble has one model chunk per stage; leave --virtual_pipeline_model_parallel_size out or use interleaved." },
        { """{"pipeline_model_parallel_size": 32, "global_batch_size": 32}""", 32, "d",
            "CFG007 --pipeline_model_parallel_size = 32 does not divide num_layers = 28; choose 1, 2, 4, 7, 14 or 28, or set decoder_first_pipeline_num_layers or decoder_last_pipeline_num_layers." },
        { """{"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 4}""", 2, "d",
            "CFG007 --num_layers_per_virtual_pipeline_stage = 4 does not divide the layers of a stage = 14; choose 1, 2, 7 or 14." },
        { """{"tp_comm_overlap": true}""", 1, "d",
            "CFG006 --tp_comm_overlap = true needs sequence parallelism; use --sequence_parallel true." },
        { """{"sequence_parallel": true}""", 1, "d",
            "CFG006 --sequence_parallel = true needs --tensor_model_parallel_size above 1, which is 1; raise it or leave sequence_parallel out." },
        { """{"attention_backend": "local"}""", 1, "d",
            "CFG006 --attention_backend = local has no meaning without Megatron's local layers; use unfused, or auto." },
        { """{"attention_backend": "unfused", "use_flash_attn": true}""", 1, "d",
            "CFG006 --use_flash_attn = true contradicts --attention_backend = unfused; use flash or leave use_flash_attn out." },
        { """{"deterministic_mode": true, "attention_backend": "fused"}""", 1, "d",
            "CFG006 --deterministic_mode = true does not go with --attention_backend = fused, whose additions have no fixed order; use flash, unfused or auto." },
        { """{"deterministic_mode": true, "cross_entropy_loss_fusion": true}""", 1, "d",
            "CFG006 --deterministic_mode = true does not go with --cross_entropy_loss_fusion = true; leave the fusion out." },
        { """{"virtual_pipeline_model_parallel_size": 2}""", 1, "d",
            "CFG006 --virtual_pipeline_model_parallel_size needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave virtual_pipeline_model_parallel_size out." },
        { """{"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 7}""", 2, "d",
            "CFG006 --virtual_pipeline_model_parallel_size = 2 and --num_layers_per_virtual_pipeline_stage = 7 say the same twice; give one of them." },
        { """{"pipeline_schedule": "interleaved", "pipeline_model_parallel_size": 2}""", 2, "d",
            "CFG006 --pipeline_schedule = interleaved needs --virtual_pipeline_model_parallel_size; give 2 or more." },
        { """{"decoder_first_pipeline_num_layers": 2}""", 1, "d",
            "CFG006 --decoder_first_pipeline_num_layers = 2 needs --pipeline_model_parallel_size above 1, which is 1; raise it or leave it out." },
        { """{"streaming": true}""", 1, "d", "CFG006 --streaming = true needs --train_iters, because the size of the data is not known; give it." },
        { """{"packing_length": 100}""", 1, "d", "CFG006 --packing_length = 100 needs --packing true; add it or leave packing_length out." },
        { """{"packing": true, "packing_length": 100, "max_length": 200}""", 1, "d",
            "CFG006 --packing_length = 100 is below --max_length = 200; give at least 200." },
        { """{"truncation_strategy": "split"}""", 1, "d",
            "CFG006 --truncation_strategy = split cuts plain text up and is for megatron pt only; use delete, left or right." },
        { """{"resume": true, "finetune": true}""", 1, "d", "CFG006 --resume = true and --finetune = true exclude each other; give one of them." },
        { """{"group_query_attention": false, "num_query_groups": 2, "num_attention_heads": 4}""", 1, "n",
            "CFG006 --group_query_attention = false contradicts --num_query_groups = 2 below --num_attention_heads = 4; leave it out." },
        { """{"to_mcore": true, "to_hf": true}""", 1, "d", "CFG006 --to_mcore = true and --to_hf = true exclude each other; give one of them." },
        { """{"stream": true, "num_beams": 2}""", 1, "d", "CFG006 --stream = true does not go with --num_beams = 2; use 1." },
        { """{"wandb_project": "p"}""", 1, "d", "CFG006 --wandb_project = p needs --wandb_exp_name; give the run a name." },
        { """{"report_to": ["none", "wandb"]}""", 1, "d", "CFG006 --report_to = none wandb contradicts itself; give none alone or leave it out." },

        // Divisions
        { """{"global_batch_size": 10, "micro_batch_size": 4}""", 1, "d",
            "CFG007 --global_batch_size = 10 is not a multiple of micro_batch_size × data-parallel size = 4 × 1 = 4; choose 8 or 12." },
        { """{"global_batch_size": 16}""", 3, "d",
            "CFG007 --global_batch_size = 16 is not a multiple of micro_batch_size × data-parallel size = 1 × 3 = 3; choose 15 or 18." },
        { """{"tensor_model_parallel_size": 3}""", 3, "heads",
            "CFG007 --tensor_model_parallel_size = 3 does not divide num_attention_heads = 32; choose 1, 2, 4, 8, 16 or 32." },
        { """{"tensor_model_parallel_size": 16}""", 16, "d",
            "CFG007 --tensor_model_parallel_size = 16 does not divide num_query_groups = 8; choose 1, 2, 4 or 8." },
        { """{"tensor_model_parallel_size": 8, "num_query_groups": 8, "num_attention_heads": 8, "ffn_hidden_size": 100}""", 8, "n",
            "CFG007 --tensor_model_parallel_size = 8 does not divide ffn_hidden_size = 100; choose 1, 2 or 4." },
        { """{"pipeline_model_parallel_size": 3}""", 3, "d",
            "CFG007 --pipeline_model_parallel_size = 3 does not divide num_layers = 28; choose 1, 2, 4, 7, 14 or 28, or set decoder_first_pipeline_num_layers or decoder_last_pipeline_num_layers." },
        { """{"pipeline_model_parallel_size": 4, "decoder_first_pipeline_num_layers": 5}""", 4, "d",
            "CFG007 --decoder_first_pipeline_num_layers = 5 and decoder_last_pipeline_num_layers = (not given) leave 23 of num_layers = 28 for 3 other stages, which is no equal share of 1 or more; change them." },
        { """{"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 10, "decoder_last_pipeline_num_layers": 10}""", 2, "d",
            "CFG007 --decoder_first_pipeline_num_layers = 10 and decoder_last_pipeline_num_layers = 10 leave 8 of num_layers = 28 for 0 other stages, which is no equal share of 1 or more; change them." },
        { """{"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}""", 4, "d",
            "CFG007 --virtual_pipeline_model_parallel_size = 2 does not divide the layers of a stage = 7; choose 1 or 7." },
        { """{"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "global_batch_size": 3}""", 2, "d",
            "CFG007 --global_batch_size = 3 gives 3 micro-batches, which the interleaved schedule needs in multiples of pipeline_model_parallel_size = 2; choose 2 or 4." },
        { """{"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}""", 6, "d",
            "CFG007 6 ranks are not a multiple of tensor × pipeline × context parallel size = 2 × 2 × 1 = 4; start 4 or 8 ranks." },
        { """{"tensor_model_parallel_size": 2}""", 1, "d",
            "CFG007 1 ranks are not a multiple of tensor × pipeline × context parallel size = 2 × 1 × 1 = 2; start 2 ranks." },
        { """{"context_parallel_size": 2, "seq_length": 1022}""", 2, "d",
            "CFG007 --seq_length = 1022 is not a multiple of 2 × context_parallel_size = 4; choose 1020 or 1024." },
        { """{"context_parallel_size": 3, "max_length": 1024, "global_batch_size": 15}""", 3, "d",
            "CFG007 --max_length = 1024 is not a multiple of 2 × context_parallel_size = 6; choose 1020 or 1026." },
        { """{"context_parallel_size": 2, "tensor_model_parallel_size": 2}""", 6, "d",
            "CFG007 6 ranks are not a multiple of tensor × pipeline × context parallel size = 2 × 1 × 2 = 4; start 4 or 8 ranks." },
        { """{"context_parallel_size": 16, "cp_comm_type": "a2a"}""", 16, "d",
            "CFG007 --context_parallel_size = 16 with --cp_comm_type = a2a must divide num_attention_heads = 16 and num_query_groups = 8; choose 1, 2, 4 or 8, or --cp_comm_type p2p." },
        { """{"context_parallel_size": 4, "tensor_model_parallel_size": 4, "cp_comm_type": "a2a"}""", 16, "d",
            "CFG007 --context_parallel_size = 4 with --cp_comm_type = a2a must divide num_attention_heads = 16 and num_query_groups = 8 / tensor_model_parallel_size = 4 and 2; choose 1 or 2, or --cp_comm_type p2p." },
        { """{"cp_comm_type": "a2a"}""", 1, "d",
            "CFG006 --cp_comm_type = a2a needs --context_parallel_size above 1, which is 1; raise it or leave cp_comm_type out." },
        { """{"context_parallel_size": 2, "attention_backend": "fused"}""", 2, "d",
            "CFG006 --attention_backend = fused does not go with --cp_comm_type = p2p, which merges what the kernel does not give; use flash, unfused or auto, or cp_comm_type a2a." },
        { """{"sequence_parallel": true, "tensor_model_parallel_size": 4, "max_length": 1022}""", 4, "d",
            "CFG007 --max_length = 1022 is not a multiple of tensor × context parallel size = 4, which sequence_parallel needs; choose 1020 or 1024." },
        { """{"max_length": 50000}""", 1, "d",
            "CFG007 --max_length = 50000 is above max_position_embeddings = 40960; give at most 40960, or extend the model with --rope_scaling and --max_position_embeddings." },
        { """{"num_attention_heads": 6, "num_query_groups": 4}""", 1, "n",
            "CFG007 --num_query_groups = 4 does not divide num_attention_heads = 6; choose 1, 2, 3 or 6." },
        { """{"num_attention_heads": 6, "hidden_size": 100}""", 1, "n",
            "CFG007 --num_attention_heads = 6 does not divide hidden_size = 100; choose 2, 4, 5 or 10." },
        { """{"kv_channels": 33}""", 1, "n", "CFG007 --kv_channels = 33 is odd and rotary embedding turns channels in pairs; choose 32 or 34." },
        { """{"expert_model_parallel_size": 2}""", 2, "d",
            "CFG007 --expert_model_parallel_size = 2 needs a model with experts and this one has none; use 1." },
        { """{"moe_shared_expert_overlap": true}""", 1, "s",
            "CFG007 --moe_shared_expert_overlap = true needs a model with a shared expert and this one has none; leave it out." },
        { """{"expert_model_parallel_size": 3, "global_batch_size": 15}""", 3, "s",
            "CFG007 --expert_model_parallel_size = 3 does not divide num_experts = 128; choose 1, 2, 4, 8, 16, 32, 64 or 128." },
        { """{"expert_tensor_parallel_size": 5, "global_batch_size": 15}""", 5, "s",
            "CFG007 --expert_tensor_parallel_size = 5 does not divide moe_ffn_hidden_size = 768; choose 2, 3, 4 or 6." },
        { """{"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}""", 2, "s",
            "CFG007 2 ranks are not a multiple of expert tensor × expert × pipeline parallel size = 2 × 2 × 1 = 4; start 4 ranks." },
        { """{"expert_model_parallel_size": 4, "global_batch_size": 18}""", 6, "s",
            "CFG007 6 ranks are not a multiple of expert tensor × expert × pipeline parallel size = 1 × 4 × 1 = 4; start 4 or 8 ranks." },
        { """{"moe_router_topk": 9, "num_experts": 8}""", 1, "n", "CFG007 --moe_router_topk = 9 is above num_experts = 8; give at most 8." },
        { """{"logical_data_shards": 3}""", 2, "d", "CFG007 --logical_data_shards = 3 is not a multiple of the data-parallel size = 2; choose 2 or 4." },
        { """{"logical_data_shards": 6, "global_batch_size": 12}""", 1, "d",
            "CFG007 --logical_data_shards = 6 is no power of two, which the addition in pairs needs; choose 1, 2 or 4." },
        { """{"logical_data_shards": 5}""", 1, "d",
            "CFG007 --logical_data_shards = 5 does not divide the global batch of 16 micro-batches; choose 1, 2, 4, 8 or 16." },
    };

    [Fact]
    public void BadValues_ImpossibleLayouts_AreFortyAtLeast()
    {
        string[] layout = ["parallel", "pipeline", "overlap", "shards", "bucket", "global_batch_size", "comm"];
        Assert.True(BadValues.Count(row => layout.Any(word => row.Data.Item1.Contains(word, StringComparison.Ordinal))) >= 40);
    }

    [Fact]
    public void Validate_FiveMistakesOfALayout_AreAllReportedAtOnce()
    {
        var config = TrainingConfig.FromJson(
            """{"tensor_model_parallel_size": 16, "pipeline_model_parallel_size": 3, "overlap_param_gather": true, "tp_comm_overlap": true, "sequence_parallel": false, "decoder_first_pipeline_num_layers": 40}""");
        var messages = ConfigValidator.Validate(config, Dense, 50).Select(error => error.Message).ToArray();
        foreach (var option in (string[])["tensor_model_parallel_size = 16 does not divide num_query_groups = 8", "decoder_first_pipeline_num_layers = 40", "overlap_param_gather", "tp_comm_overlap", "50 ranks are not a multiple of tensor"])
            Assert.Contains(messages, message => message.Contains(option));
        Assert.Equal(5, messages.Length);
    }

    [Theory]
    [MemberData(nameof(BadValues))]
    public void Validate_BadValue_SaysWhatWhichAndWhatToDo(string options, int worldSize, string model, string message)
    {
        var architecture = model switch
        {
            "d" => Dense,
            "s" => Sparse,
            "heads" => Dense with { NumAttentionHeads = 32, NumQueryGroups = 32, FfnHiddenSize = 3072, VocabSize = 3072 * 32 },
            _ => null,
        };
        var errors = ConfigValidator.Validate(TrainingConfig.FromJson(options), architecture, worldSize);
        if (errors.Count != 1) // one mistake may show in several sizes; each of them is named
            Assert.All(errors, error => Assert.Equal(message[..6], error.ToString()[..6]));
        Assert.Contains(message, errors.Select(error => error.ToString()));
    }

    [Fact]
    public void BadValues_AreAtLeastSixty() => Assert.True(BadValues.Count >= 60);

    [Theory]
    [InlineData("{}", 1)]
    [InlineData("{}", 16)]
    [InlineData("""{"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}""", 1)]
    [InlineData("""{"tensor_model_parallel_size": 4, "sequence_parallel": true, "tp_comm_overlap": true}""", 8)]
    [InlineData("""{"pipeline_model_parallel_size": 4, "decoder_first_pipeline_num_layers": 6, "decoder_last_pipeline_num_layers": 8}""", 4)]
    [InlineData("""{"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 7}""", 2)]
    [InlineData("""{"context_parallel_size": 4, "seq_length": 1024}""", 4)]
    [InlineData("""{"context_parallel_size": 16, "seq_length": 1024}""", 16)]
    [InlineData("""{"context_parallel_size": 4, "tensor_model_parallel_size": 2, "cp_comm_type": "a2a"}""", 8)]
    [InlineData("""{"logical_data_shards": 8}""", 4)]
    [InlineData("""{"tensor_model_parallel_size": 4, "padded_vocab_size": 1002}""", 4)]
    [InlineData("""{"lr": 0, "clip_grad": 0, "train_iters": 3, "lr_warmup_iters": 2}""", 1)]
    public void Validate_GoodValue_SaysNothing(string options, int worldSize) =>
        Assert.Empty(ConfigValidator.Validate(TrainingConfig.FromJson(options), Dense, worldSize));

    [Fact]
    public void Validate_ManyMistakes_AllAreReportedAtOnce()
    {
        var config = new TrainingConfig { Lr = double.NaN, MicroBatchSize = 0, Fp16 = true, Bf16 = true, RecomputeMethod = "block" };
        Assert.Equal(["CFG005", "CFG005", "CFG006", "CFG006"], ConfigValidator.Validate(config, Dense, 1).Select(error => error.Code));
    }

    [Fact]
    public void MissingForTraining_NothingGiven_NamesAll() =>
        Assert.Equal(3, ConfigValidator.MissingForTraining(new TrainingConfig()).Count);

    [Fact]
    public void ThrowIfInvalid_UnsupportedAndWrong_BothAreListed()
    {
        var failure = Assert.Throws<ConfigException>(() =>
            ConfigValidator.ThrowIfInvalid(new TrainingConfig { PushToHub = true, Lr = -1 }, Dense, 1));
        Assert.Equal(["CFG005", "CFG004"], failure.Errors.Select(error => error.Code));
    }

    [Theory]
    [InlineData("""{"push_to_hub": true}""", "--push_to_hub = true is not supported yet; use false.")]
    [InlineData("""{"model_revision": "v2"}""", "--model_revision = v2 is not supported yet; give a local folder: nothing is fetched from a hub yet.")]
    [InlineData("""{"model_kwargs": {"a": "b"}}""", "--model_kwargs = {\"a\":\"b\"} is not supported yet; leave the option out.")]
    [InlineData("""{"recompute_modules": ["mla_up_proj"]}""", "--recompute_modules = mla_up_proj is not supported yet; choose among core_attn, mlp, moe, moe_act or layernorm.")]
    [InlineData("""{"cp_comm_type": "all_gather"}""", "--cp_comm_type = all_gather is not supported yet; use p2p or a2a.")]
    public void UnsupportedValues_GivenOne_IsRefusedByName(string options, string message)
    {
        var error = Assert.Single(UnsupportedValues.Check(TrainingConfig.FromJson(options), Dense));
        Assert.Equal(new ConfigError("CFG004", message), error);
    }

    [Fact]
    public void UnsupportedValues_DefaultsOfOneRank_AreAllSupported() =>
        Assert.Empty(UnsupportedValues.Check(new TrainingConfig(), Dense));

    [Fact]
    public void UnsupportedValues_Experts_AreRefused() => Assert.Single(UnsupportedValues.Check(new TrainingConfig(), Sparse));

    [Fact]
    public void Options_EveryNumber_HasARange()
    {
        var bad = new Dictionary<OptionKind, object> { [OptionKind.Integer] = int.MinValue, [OptionKind.Number] = double.NaN };
        foreach (var option in OptionCatalog.All.Where(option => bad.ContainsKey(option.Kind)))
        {
            var config = OptionCatalog.With(new TrainingConfig(), new Dictionary<string, object?> { [option.Name] = bad[option.Kind] });
            Assert.Contains(ConfigValidator.Validate(config, null, 1), error => error.Message.StartsWith($"--{option.Name} =", StringComparison.Ordinal));
        }
    }

    [Fact]
    public void Validate_AnyValuesOfTheRightType_NeverThrows()
    {
        var random = new Random(20250524);
        for (var round = 0; round < 200; round++)
        {
            var values = OptionCatalog.All.Where(option => option.Kind is OptionKind.Integer or OptionKind.Number && random.Next(3) == 0)
                .ToDictionary(option => option.Name, object? (option) => option.Kind == OptionKind.Integer
                    ? (object)random.Next(1, 1 << random.Next(1, 31)) : random.NextDouble());
            var json = JsonSerializer.Serialize(values);
            try
            {
                ConfigValidator.Validate(OptionCatalog.With(new TrainingConfig(), values), random.Next(2) == 0 ? Sparse : null, random.Next(1, 64));
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed 20250524, round {round}: {exception.Message} for {json}");
            }
        }
    }
}
