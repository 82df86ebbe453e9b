namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: mixture of experts (reference 1.10 and later additions).
public sealed partial record TrainingConfig
{
    [Option("num_experts", "Routed experts per layer.", Moe, DefaultFrom = "config.json")]
    public int? NumExperts { get; init; }

    [Option("moe_ffn_hidden_size", "Width of one expert.", Moe, DefaultFrom = "config.json")]
    public int? MoeFfnHiddenSize { get; init; }

    [Option("moe_shared_expert_intermediate_size", "Width of the shared expert; 0 = none.", Moe, DefaultFrom = "config.json")]
    public int? MoeSharedExpertIntermediateSize { get; init; }

    [Option("moe_router_topk", "Experts per token.", Moe, DefaultFrom = "config.json, else 2")]
    public int? MoeRouterTopk { get; init; }

    [Option("moe_router_pre_softmax", "Softmax before the choice of experts (not renormalised) instead of after it.", Moe,
        DefaultFrom = "config.json, else false")]
    public bool? MoeRouterPreSoftmax { get; init; }

    [Option("moe_router_dtype", "Number format of the router.", Moe, Choices = "fp32|fp64|none")]
    public string MoeRouterDtype { get; init; } = "fp32";

    [Option("moe_router_load_balancing_type", "How the load of the experts is balanced.",
        Moe, Choices = "aux_loss|seq_aux_loss|sinkhorn|none")]
    public string MoeRouterLoadBalancingType { get; init; } = "aux_loss";

    [Option("moe_aux_loss_coeff", "Weight of the balancing loss.", Moe, DefaultFrom = "config.json, else 0")]
    public double? MoeAuxLossCoeff { get; init; }

    [Option("moe_z_loss_coeff", "Weight of the router's z-loss.", Moe)]
    public double? MoeZLossCoeff { get; init; }

    [Option("moe_expert_capacity_factor", "Tokens per expert as a multiple of the even share; tokens beyond are dropped.",
        Moe, DefaultFrom = "no limit")]
    public double? MoeExpertCapacityFactor { get; init; }

    [Option("expert_model_parallel_size", "Ranks that share the experts.", Moe)]
    public int ExpertModelParallelSize { get; init; } = 1;

    [Option("expert_tensor_parallel_size", "Ranks that share each expert's matrices.", Moe, DefaultFrom = "tensor_model_parallel_size")]
    public int? ExpertTensorParallelSize { get; init; }

    [Option("moe_token_dispatcher_type", "How tokens travel to their experts.", Moe, Choices = "allgather|alltoall|alltoall_seq")]
    public string MoeTokenDispatcherType { get; init; } = "alltoall";

    [Option("moe_grouped_gemm", "Run the experts of a rank as one grouped product.", Moe, Effect = OptionEffect.SpeedOnly)]
    public bool MoeGroupedGemm { get; init; }

    [Option("moe_permute_fusion", "Fuse the sorting of tokens by expert.", Moe, Effect = OptionEffect.SpeedOnly)]
    public bool MoePermuteFusion { get; init; }

    [Option("moe_shared_expert_overlap", "Run the shared expert while tokens travel.", Moe)]
    public bool MoeSharedExpertOverlap { get; init; }

    [Option("moe_layer_recompute", "Recompute the expert layer; the newer way is recompute_modules moe.", Moe)]
    public bool MoeLayerRecompute { get; init; }
}
