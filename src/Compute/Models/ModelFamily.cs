namespace Megatron.Compute.Models;

/// <summary>What distinguishes one Hugging Face architecture from another, beyond the numbers in config.json.</summary>
public sealed record ModelFamily
{
    /// <summary>Hugging Face class, the key of the registry.</summary>
    public required string Architecture { get; init; }

    /// <summary>Hugging Face <c>model_type</c>.</summary>
    public required string ModelType { get; init; }

    /// <summary>q, k and v have biases, whatever config.json says (Qwen2 has no key for it).</summary>
    public bool HasQkvBias { get; init; }

    /// <summary>q and k are normalised per head.</summary>
    public bool HasQkNorm { get; init; }

    /// <summary>Layers have experts.</summary>
    public bool HasExperts { get; init; }

    /// <summary>Layers have a shared expert with a sigmoid gate.</summary>
    public bool HasSharedExpert { get; init; }

    /// <summary>head_dim when config.json does not name it; null means hidden_size / num_attention_heads.</summary>
    public int? DefaultHeadDim { get; init; }
}
