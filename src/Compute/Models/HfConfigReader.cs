using System.Text.Json;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Models;

/// <summary>An architecture as its folder describes it.</summary>
/// <param name="Model">The numbers.</param>
/// <param name="Dtype">dtype of the weights as config.json names it (<c>bfloat16</c>, <c>float32</c>, …); null when it does not.</param>
public sealed record HfConfig(ModelConfig Model, string? Dtype)
{
    /// <summary><c>router_aux_loss_coef</c>: the weight of the balance loss that the model's makers used; null when config.json does not name it.</summary>
    public double? RouterAuxLossCoeff { get; init; }
}

/// <summary>
/// Reads a Hugging Face <c>config.json</c>, in the classic layout and in that of transformers 5 (<c>rope_parameters</c>, <c>dtype</c>,
/// <c>num_local_experts</c>). Keys that do not change the arithmetic are ignored; those that do and are not supported are refused by name
/// and value, all of them at once.
/// </summary>
public static class HfConfigReader
{
    /// <summary>Reads <c>config.json</c> of a model folder.</summary>
    /// <exception cref="ConfigException">The file is missing, is not JSON, or describes a model that cannot be computed.</exception>
    public static HfConfig ReadFolder(string folder)
    {
        var path = Path.Combine(folder, "config.json");
        if (!File.Exists(path))
            throw new ConfigException("MODEL001", $"{folder} has no config.json; name a Hugging Face model folder.");
        return Parse(File.ReadAllText(path), path);
    }

    /// <summary>Parses the text of a config.json.</summary>
    /// <param name="source">Named in messages.</param>
    /// <exception cref="ConfigException">See <see cref="ReadFolder"/>.</exception>
    public static HfConfig Parse(string json, string source)
    {
        try
        {
            using var document = JsonDocument.Parse(json);
            return Read(new HfConfigFields(document.RootElement, source));
        }
        catch (JsonException error)
        {
            throw new ConfigException("MODEL002", $"{source} is not valid JSON (line {error.LineNumber + 1}); download it again.");
        }
    }

    private static HfConfig Read(HfConfigFields fields)
    {
        var architecture = fields.Architecture();
        var supported = string.Join(", ", ModelRegistry.Families.Select(known => known.Architecture));
        var family = ModelRegistry.Find(architecture)
            ?? throw new ConfigException("MODEL003", $"{fields.Source}: architecture {architecture} is not supported; choose one of {supported}.");

        HfConfigRefusals.Check(fields, family);
        var model = ReadModel(fields, family);
        double? auxLossCoeff = fields.Has("router_aux_loss_coef") ? fields.NumberOr("router_aux_loss_coef", 0) : null;
        fields.ThrowIfAny();
        return new HfConfig(model, fields.Text("dtype") ?? fields.Text("torch_dtype")) { RouterAuxLossCoeff = auxLossCoeff };
    }

    private static ModelConfig ReadModel(HfConfigFields fields, ModelFamily family)
    {
        var (hidden, heads) = (fields.Positive("hidden_size"), fields.Positive("num_attention_heads"));
        var groups = fields.PositiveOr("num_key_value_heads", heads);
        var headDim = fields.PositiveOr("head_dim", family.DefaultHeadDim ?? hidden / heads);
        if (!fields.Has("head_dim") && family.DefaultHeadDim is null && hidden % heads != 0)
            fields.Refuse("num_attention_heads", $"does not divide hidden_size = {hidden} and there is no head_dim");
        if (heads % groups != 0) fields.Refuse("num_key_value_heads", $"does not divide num_attention_heads = {heads}");
        if (headDim % 2 != 0) fields.Refuse("head_dim", "is odd; rotary positions need pairs of channels");
        var maxPositions = fields.Positive("max_position_embeddings");
        return new ModelConfig
        {
            Architecture = family.Architecture,
            ModelType = family.ModelType,
            NumLayers = fields.Positive("num_hidden_layers"),
            HiddenSize = hidden,
            FfnHiddenSize = fields.Positive("intermediate_size"),
            NumAttentionHeads = heads,
            NumQueryGroups = groups,
            KvChannels = headDim,
            VocabSize = fields.Positive("vocab_size"),
            MaxPositionEmbeddings = maxPositions,
            NormEpsilon = fields.NumberOr("rms_norm_eps", 1e-6),
            TieWordEmbeddings = fields.Flag("tie_word_embeddings"),
            AddQkvBias = family.HasQkvBias,
            QkLayerNorm = family.HasQkNorm,
            Rotary = HfRotaryReader.Read(fields, maxPositions),
            AttentionDropout = fields.NumberOr("attention_dropout", 0),
            InitializerRange = fields.NumberOr("initializer_range", 0.02),
            Moe = family.HasExperts ? ReadMoe(fields, family) : null,
        };
    }

    private static MoeConfig ReadMoe(HfConfigFields fields, ModelFamily family)
    {
        var numExperts = fields.Positive(fields.Has("num_experts") ? "num_experts" : "num_local_experts");
        var topK = fields.Positive("num_experts_per_tok");
        if (topK > numExperts) fields.Refuse("num_experts_per_tok", $"is more than the {numExperts} experts");
        var shared = family.HasSharedExpert ? fields.NumberOr("shared_expert_intermediate_size", 0) : 0;
        return new MoeConfig
        {
            NumExperts = numExperts,
            FfnHiddenSize = fields.Positive("moe_intermediate_size"),
            TopK = topK,
            PreSoftmax = !fields.Flag("norm_topk_prob"),
            SharedExpertFfnHiddenSize = shared > 0 ? (int)shared : null,
            DecoderSparseStep = fields.PositiveOr("decoder_sparse_step", 1),
            MlpOnlyLayers = fields.IntegersOr("mlp_only_layers", []),
        };
    }
}
