using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;

namespace Megatron.Compute.Transformer;

/// <summary>What every layer of a model is built from: architecture, this rank's place, dtype and device, and the settings of the run.</summary>
public sealed record LayerContext
{
    public required ModelConfig Config { get; init; }
    public required ParallelState Parallel { get; init; }

    /// <summary>Borders of the tensor-parallel region.</summary>
    public required SequenceParallelRegion Region { get; init; }

    public required ParameterFactory Weights { get; init; }
    public required RotaryEmbedding Rotary { get; init; }
    public required AttentionOptions Attention { get; init; }
    public required ProductOptions Products { get; init; }
    public required RecomputeOptions Recompute { get; init; }
    public required MoeOptions Moe { get; init; }

    /// <summary>Where routers report; null for an architecture without experts.</summary>
    public required RoutingStatistics? Routing { get; init; }

    /// <summary>Seed of dropout.</summary>
    public required long Seed { get; init; }

    /// <summary>Ranks of the tensor-parallel group.</summary>
    public int TensorParallelSize => Region.Group.Size;

    /// <summary>A vector that every rank of the tensor-parallel group holds: a norm's weight. No decay.</summary>
    /// <param name="isPartial">Its gradient on one rank covers that rank's tokens or heads only, so the group's gradients are summed.</param>
    public Parameter CreateReplicatedVector(string name, int length, bool isPartial) =>
        Weights.Create(name, [length], [TensorBlock.Whole(name, length)], new ParameterTraits { Decays = false, IsSequenceParallel = isPartial });
}
