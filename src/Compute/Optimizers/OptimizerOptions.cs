using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>Update rules.</summary>
public enum OptimizerKind
{
    /// <summary>Adam with decoupled weight decay (AdamW).</summary>
    Adam,

    /// <summary>Stochastic gradient descent with momentum; weight decay is added to the gradient.</summary>
    Sgd,
}

/// <summary>Settings of <see cref="MixedPrecisionOptimizer"/>; names and defaults of the command line (megatron-swift 1.1, 1.3, 1.5).</summary>
public sealed record OptimizerOptions
{
    /// <summary><c>--optimizer</c>.</summary>
    public required OptimizerKind Kind { get; init; }

    /// <summary><c>--weight_decay</c>, for parameters whose traits say that they decay.</summary>
    public required double WeightDecay { get; init; }

    /// <summary><c>--clip_grad</c>: largest global norm; 0 turns clipping off.</summary>
    public required double ClipGrad { get; init; }

    /// <summary><c>--adam_beta1</c>; used by Adam only.</summary>
    public required double AdamBeta1 { get; init; }

    /// <summary><c>--adam_beta2</c>; used by Adam only.</summary>
    public required double AdamBeta2 { get; init; }

    /// <summary><c>--adam_eps</c>; used by Adam only.</summary>
    public required double AdamEps { get; init; }

    /// <summary><c>--sgd_momentum</c>; used by SGD only.</summary>
    public required double SgdMomentum { get; init; }

    /// <summary><c>--use_distributed_optimizer</c>: masters and moments are sharded over the data-parallel replicas (ZeRO-1).</summary>
    public required bool UseDistributedOptimizer { get; init; }

    /// <summary>
    /// <c>--logical_data_shards</c> (DESIGN D12): gradients are added over the replicas in the binary tree that continues
    /// <see cref="Distributed.GradientBuffer.ReduceShards"/>, and the norm is taken of whole gradients, so that no bit depends on the number of
    /// replicas. Costs an all-to-all and an all-gather of the gradients in place of one reduction.
    /// </summary>
    public bool OrderedReduction { get; init; }

    /// <summary><c>--overlap_grad_reduce</c>: a bucket's reduction starts inside the backward. Without effect on <see cref="OrderedReduction"/>.</summary>
    public bool OverlapGradReduce { get; init; }

    /// <summary><c>--overlap_param_gather</c>: new weights are gathered bucket by bucket and waited for where they are first read.</summary>
    public bool OverlapParamGather { get; init; }

    /// <summary>
    /// <c>--optimizer_cpu_offload</c> and <c>--optimizer_offload_fraction</c>: the share of masters and moments, counted in whole buckets from the
    /// first, that lies in host memory and is updated there. 0 on a CPU and for SGD. The same numbers to the last roundings.
    /// </summary>
    public double OffloadFraction { get; init; }

    /// <summary><c>--grad_reduce_in_bf16</c>: the dtype in which gradients travel between replicas; null is fp32.</summary>
    public ScalarType? ReduceIn16Bits { get; init; }
}

/// <summary>What one optimizer step did.</summary>
/// <param name="GradNorm">Global L2 norm of the unscaled gradient before clipping; NaN or infinity when the gradient was not finite.</param>
/// <param name="ClipFactor">Factor by which the gradient was multiplied, at most 1; 1 when it was not clipped.</param>
/// <param name="IsSkipped">The gradient was not finite: no weight, moment or step count changed.</param>
/// <param name="LossScale">Loss scale under which the gradient was made (1 without fp16); the scale of the next step is the scaler's.</param>
public readonly record struct OptimizerStepResult(double GradNorm, double ClipFactor, bool IsSkipped, double LossScale);
