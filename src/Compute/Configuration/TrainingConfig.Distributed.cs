namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: distributed (reference 1.5 and later additions).
public sealed partial record TrainingConfig
{
    [Option("distributed_backend", "Collectives between processes: nccl on GPUs, gloo on CPUs (ranks of one CPU process need neither).",
        Distributed, Choices = "nccl|gloo")]
    public string DistributedBackend { get; init; } = "nccl";

    [Option("use_distributed_optimizer", "Shard fp32 masters and moments over the data-parallel ranks (ZeRO-1).", Distributed)]
    public bool UseDistributedOptimizer { get; init; } = true;

    [Option("tensor_model_parallel_size", "Ranks that share each layer's matrices.", Distributed)]
    public int TensorModelParallelSize { get; init; } = 1;

    [Option("pipeline_model_parallel_size", "Pipeline stages.", Distributed)]
    public int PipelineModelParallelSize { get; init; } = 1;

    [Option("decoder_first_pipeline_num_layers", "Layers of the first stage; the rest divides evenly.", Distributed)]
    public int? DecoderFirstPipelineNumLayers { get; init; }

    [Option("decoder_last_pipeline_num_layers", "Layers of the last stage; the rest divides evenly.", Distributed)]
    public int? DecoderLastPipelineNumLayers { get; init; }

    [Option("virtual_pipeline_model_parallel_size", "Model chunks per pipeline stage.", Distributed)]
    public int? VirtualPipelineModelParallelSize { get; init; }

    [Option("num_layers_per_virtual_pipeline_stage", "Layers per model chunk; another way to give the number of chunks.", Distributed)]
    public int? NumLayersPerVirtualPipelineStage { get; init; }

    [Option("pipeline_schedule", "Order of the work in the pipeline.", Distributed, Choices = "auto|gpipe|1f1b|interleaved|zero_bubble")]
    public string PipelineSchedule { get; init; } = "auto";

    [Option("sequence_parallel", "Split norms and dropout along the sequence over the tensor-parallel ranks.", Distributed)]
    public bool SequenceParallel { get; init; }

    [Option("context_parallel_size", "Ranks that share each sequence.", Distributed)]
    public int ContextParallelSize { get; init; } = 1;

    [Option("cp_comm_type", "How context-parallel ranks reach each other's keys: round a ring (p2p), or by exchanging tokens for heads (a2a).", Distributed, Choices = "p2p|all_gather|a2a|a2a+p2p")]
    public string CpCommType { get; init; } = "p2p";

    [Option("tp_comm_overlap", "Run tensor-parallel communication beside products, in chunks of the tokens; needs sequence_parallel.", Distributed)]
    public bool TpCommOverlap { get; init; }

    [Option("overlap_grad_reduce", "Reduce a bucket's gradients while backward runs.", Distributed)]
    public bool OverlapGradReduce { get; init; }

    [Option("overlap_param_gather", "Gather a bucket's new weights while forward runs.", Distributed)]
    public bool OverlapParamGather { get; init; }

    [Option("ddp_bucket_size", "Elements of a bucket: the parameters whose gradients are reduced, and whose weights are gathered, together.",
        Distributed)]
    public int DdpBucketSize { get; init; } = 40_000_000;

    [Option("grad_reduce_in_bf16", "Send gradients between data-parallel ranks in bf16 instead of fp32: half the volume, rounded sums.", Distributed)]
    public bool GradReduceInBf16 { get; init; }

    [Option("distributed_timeout_minutes", "Time limit of a collective, in minutes.", Distributed)]
    public int DistributedTimeoutMinutes { get; init; } = 300_000;

    [Option("logical_data_shards", "Gradient accumulators added in a fixed order, so that bits do not depend on the data-parallel size.",
        Distributed)]
    public int? LogicalDataShards { get; init; }

    [Option("peer_snapshot_interval", "Steps between two copies of the optimizer state into another node's memory; 0 = none.", Distributed)]
    public int PeerSnapshotInterval { get; init; }
}
