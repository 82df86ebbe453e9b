namespace Megatron.Compute.Configuration;

/// <summary>
/// The architecture of a decoder-only transformer, as read from a Hugging Face <c>config.json</c> (Models/HfConfigReader) and
/// overridden by the command line. Only numbers: nothing here depends on the parallel layout.
/// </summary>
public sealed record ModelConfig
{
    /// <summary>Hugging Face class, e.g. <c>Qwen3ForCausalLM</c>.</summary>
    public required string Architecture { get; init; }

    /// <summary>Hugging Face <c>model_type</c>, e.g. <c>qwen3</c>.</summary>
    public required string ModelType { get; init; }

    public required int NumLayers { get; init; }
    public required int HiddenSize { get; init; }

    /// <summary>Width of the dense MLP (<c>intermediate_size</c>).</summary>
    public required int FfnHiddenSize { get; init; }

    public required int NumAttentionHeads { get; init; }

    /// <summary>Key/value heads; equals <see cref="NumAttentionHeads"/> for MHA, 1 for MQA.</summary>
    public required int NumQueryGroups { get; init; }

    /// <summary>Size of one head.</summary>
    public required int KvChannels { get; init; }

    /// <summary>Rows of the embedding in every file, never cut to the tokenizer's size; ranks may pad their part of it in memory.</summary>
    public required int VocabSize { get; init; }

    public required int MaxPositionEmbeddings { get; init; }
    public required double NormEpsilon { get; init; }

    /// <summary>True when the head reuses the embedding's weight.</summary>
    public required bool TieWordEmbeddings { get; init; }

    /// <summary>Bias on q, k and v.</summary>
    public required bool AddQkvBias { get; init; }

    /// <summary>RMSNorm over each head's channels of q and k before RoPE (Qwen3).</summary>
    public required bool QkLayerNorm { get; init; }

    public required RotaryConfig Rotary { get; init; }
    public double AttentionDropout { get; init; }
    public double HiddenDropout { get; init; }

    /// <summary>Standard deviation of the initial weights.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>Mixture-of-experts settings; null for a dense model.</summary>
    public MoeConfig? Moe { get; init; }

    /// <summary>True when layer <paramref name="layerIndex"/> (0-based, global) has experts instead of a dense MLP.</summary>
    public bool IsMoeLayer(int layerIndex) => Moe is not null && Moe.IsMoeLayer(layerIndex);
}

/// <summary>Rotary position embedding (arXiv 2104.09864) with the scaling rules that Hugging Face names.</summary>
public sealed record RotaryConfig
{
    public required double Base { get; init; }

    /// <summary><c>default</c>, <c>linear</c>, <c>llama3</c> or <c>yarn</c>.</summary>
    public string ScalingType { get; init; } = "default";

    public double Factor { get; init; } = 1.0;
    public double LowFreqFactor { get; init; } = 1.0;
    public double HighFreqFactor { get; init; } = 4.0;
    public int OriginalMaxPositionEmbeddings { get; init; }

    /// <summary>yarn: multiplies cos and sin; null means 0.1·ln(factor) + 1 (arXiv 2309.00071, section 3.4).</summary>
    public double? AttentionFactor { get; init; }

    public double BetaFast { get; init; } = 32;
    public double BetaSlow { get; init; } = 1;
    public double? MScale { get; init; }
    public double? MScaleAllDim { get; init; }

    /// <summary>yarn: round the correction range to whole channels, as Hugging Face does unless <c>truncate</c> is false.</summary>
    public bool Truncate { get; init; } = true;
}

/// <summary>Routed experts of a Qwen-style MoE layer.</summary>
public sealed record MoeConfig
{
    public required int NumExperts { get; init; }
    public required int FfnHiddenSize { get; init; }
    public required int TopK { get; init; }

    /// <summary>True: softmax over all experts, then top-k, not renormalised. False: top-k, then softmax over the k.</summary>
    public required bool PreSoftmax { get; init; }

    /// <summary>Width of the shared expert (sigmoid-gated); null when there is none.</summary>
    public int? SharedExpertFfnHiddenSize { get; init; }

    public int DecoderSparseStep { get; init; } = 1;
    public IReadOnlyList<int> MlpOnlyLayers { get; init; } = [];

    /// <summary>Hugging Face rule: layer index + 1 divides by the sparse step and the layer is not listed as dense.</summary>
    public bool IsMoeLayer(int layerIndex) =>
        NumExperts > 0 && !MlpOnlyLayers.Contains(layerIndex) && (layerIndex + 1) % DecoderSparseStep == 0;
}
