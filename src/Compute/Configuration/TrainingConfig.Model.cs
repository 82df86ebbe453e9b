namespace Megatron.Compute.Configuration;

// Options: model architecture (reference 1.9): normally filled from config.json.
public sealed partial record TrainingConfig
{
    [Option("num_layers", "Transformer layers.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? NumLayers { get; init; }

    [Option("hidden_size", "Width of the residual stream.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? HiddenSize { get; init; }

    [Option("ffn_hidden_size", "Width of the dense MLP.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? FfnHiddenSize { get; init; }

    [Option("num_attention_heads", "Query heads.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? NumAttentionHeads { get; init; }

    [Option("group_query_attention", "Whether query heads share key/value heads; follows from num_query_groups.", OptionSection.Model,
        DefaultFrom = "num_query_groups")]
    public bool? GroupQueryAttention { get; init; }

    [Option("num_query_groups", "Key/value heads.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? NumQueryGroups { get; init; }

    [Option("kv_channels", "Size of one head.", OptionSection.Model, DefaultFrom = "config.json, else hidden_size / num_attention_heads")]
    public int? KvChannels { get; init; }

    [Option("max_position_embeddings", "Longest sequence of the model, in tokens.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? MaxPositionEmbeddings { get; init; }

    [Option("padded_vocab_size", "Rows of the embedding, used as they are.", OptionSection.Model, DefaultFrom = "config.json")]
    public int? PaddedVocabSize { get; init; }

    [Option("position_embedding_type", "Kind of position embedding.",
        OptionSection.Model, Choices = "learned_absolute|rope|mrope|relative|none")]
    public string PositionEmbeddingType { get; init; } = "rope";

    [Option("rotary_base", "Base of the rotary embedding.", OptionSection.Model, DefaultFrom = "config.json, else 10000")]
    public double? RotaryBase { get; init; }

    [Option("rotary_percent", "Share of a head's channels that is rotated.", OptionSection.Model)]
    public double RotaryPercent { get; init; } = 1.0;

    [Option("rope_scaling", "JSON object with rope_type (or type) linear, llama3 or yarn and its numbers.",
        OptionSection.Model, IsJson = true, DefaultFrom = "config.json")]
    public string? RopeScaling { get; init; }

    [Option("normalization", "Kind of normalisation.", OptionSection.Model, Choices = "LayerNorm|RMSNorm")]
    public string Normalization { get; init; } = "RMSNorm";

    [Option("norm_epsilon", "Added to the mean square.", OptionSection.Model, DefaultFrom = "config.json, else 1e-5")]
    public double? NormEpsilon { get; init; }

    [Option("swiglu", "Gated MLP with SiLU.", OptionSection.Model, DefaultFrom = "config.json, else true")]
    public bool? Swiglu { get; init; }

    [Option("untie_embeddings_and_output_weights", "The head has weights of its own.",
        OptionSection.Model, DefaultFrom = "config.json, else true")]
    public bool? UntieEmbeddingsAndOutputWeights { get; init; }

    [Option("disable_bias_linear", "No bias in MLP and attention output.", OptionSection.Model, DefaultFrom = "config.json, else true")]
    public bool? DisableBiasLinear { get; init; }

    [Option("add_qkv_bias", "Bias on q, k and v.", OptionSection.Model, DefaultFrom = "config.json")]
    public bool? AddQkvBias { get; init; }

    [Option("qk_layernorm", "RMSNorm over the channels of each q and k head.", OptionSection.Model, DefaultFrom = "the model family")]
    public bool? QkLayernorm { get; init; }

    [Option("attention_dropout", "Dropout of attention weights, 0 to below 1.", OptionSection.Model, DefaultFrom = "config.json, else 0")]
    public double? AttentionDropout { get; init; }

    [Option("hidden_dropout", "Dropout before each residual sum, 0 to below 1.", OptionSection.Model)]
    public double HiddenDropout { get; init; }

    [Option("init_method_std", "Standard deviation of initial weights.", OptionSection.Model, DefaultFrom = "config.json, else 0.02")]
    public double? InitMethodStd { get; init; }

    [Option("transformer_impl", "Layer library of the reference; there is one implementation here.", OptionSection.Model,
        Choices = "local|transformer_engine", Effect = OptionEffect.SpeedOnly)]
    public string TransformerImpl { get; init; } = "transformer_engine";
}
