using Megatron.Compute.Configuration;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.Transformer;
using static TorchSharp.torch;

namespace Megatron.Compute.Models;

/// <summary>How a model is built on one rank: settings of the run, not of the architecture.</summary>
public sealed record ModelOptions
{
    /// <summary>Dtype of weights and activations: fp32, bf16 or fp16; fp64 in tests.</summary>
    public required ScalarType Dtype { get; init; }

    public required Device Device { get; init; }

    /// <summary>Seed of dropout.</summary>
    public required long Seed { get; init; }

    public required RecomputeOptions Recompute { get; init; }

    public required AttentionOptions Attention { get; init; }

    /// <summary>Routing; read by architectures with experts only.</summary>
    public required MoeOptions Moe { get; init; }

    /// <summary>How the products of linear layers and of the head are formed.</summary>
    public ProductOptions Products { get; init; } = ProductOptions.Default;

    /// <summary>Chunks in which tensor-parallel communication runs beside products (<c>--tp_comm_overlap</c>); 1 for none.</summary>
    public int TensorOverlapChunks { get; init; } = 1;

    /// <summary>Tokens whose logits exist at a time in the head.</summary>
    public int HeadChunkTokens { get; init; } = 2048;
}

/// <summary>What one model chunk of a pipeline rank owns.</summary>
/// <param name="FirstLayer">0-based global index of its first layer.</param>
/// <param name="EndLayer">One past its last layer.</param>
/// <param name="HasEmbedding">It reads tokens.</param>
/// <param name="HasHead">It owns the final norm, the head and the loss.</param>
public sealed record StageLayout(int FirstLayer, int EndLayer, bool HasEmbedding, bool HasHead)
{
    /// <summary>The whole model on one stage.</summary>
    public static StageLayout Whole(ModelConfig config) => new(0, config.NumLayers, HasEmbedding: true, HasHead: true);
}
