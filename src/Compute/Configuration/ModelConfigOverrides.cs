namespace Megatron.Compute.Configuration;

/// <summary>
/// The architecture that a run uses: what the user says wins, the model's <c>config.json</c> fills the rest, then the defaults
/// (reference 1.9). <c>hidden_dropout</c> comes from the option alone, as in the reference.
/// </summary>
public static class ModelConfigOverrides
{
    /// <summary>Lays the given options over the architecture read from a Hugging Face folder.</summary>
    /// <exception cref="ConfigException"><c>--rope_scaling</c> cannot be used.</exception>
    public static ModelConfig Apply(ModelConfig fromHf, TrainingConfig config)
    {
        var heads = config.NumAttentionHeads ?? fromHf.NumAttentionHeads;
        var hidden = config.HiddenSize ?? fromHf.HiddenSize;
        return fromHf with
        {
            NumLayers = config.NumLayers ?? fromHf.NumLayers,
            HiddenSize = hidden,
            FfnHiddenSize = config.FfnHiddenSize ?? fromHf.FfnHiddenSize,
            NumAttentionHeads = heads,
            NumQueryGroups = config.NumQueryGroups ?? (config.GroupQueryAttention == false ? heads : Groups(fromHf, heads)),
            KvChannels = config.KvChannels ?? Channels(fromHf, hidden, heads),
            VocabSize = config.PaddedVocabSize ?? fromHf.VocabSize,
            MaxPositionEmbeddings = config.MaxPositionEmbeddings ?? fromHf.MaxPositionEmbeddings,
            NormEpsilon = config.NormEpsilon ?? fromHf.NormEpsilon,
            TieWordEmbeddings = config.UntieEmbeddingsAndOutputWeights is { } untie ? !untie : fromHf.TieWordEmbeddings,
            AddQkvBias = config.AddQkvBias ?? fromHf.AddQkvBias,
            QkLayerNorm = config.QkLayernorm ?? fromHf.QkLayerNorm,
            Rotary = Rotary(fromHf.Rotary, config),
            AttentionDropout = config.AttentionDropout ?? fromHf.AttentionDropout,
            HiddenDropout = config.HiddenDropout,
            InitializerRange = config.InitMethodStd ?? fromHf.InitializerRange,
            Moe = Experts(fromHf, config),
        };
    }

    /// <summary>A model without grouped heads keeps none when the number of heads is overridden.</summary>
    private static int Groups(ModelConfig fromHf, int heads) => fromHf.NumQueryGroups == fromHf.NumAttentionHeads ? heads : fromHf.NumQueryGroups;

    /// <summary>A head size that followed from the width still follows from it; one of its own stays.</summary>
    private static int Channels(ModelConfig fromHf, int hidden, int heads)
    {
        var derived = fromHf.KvChannels * fromHf.NumAttentionHeads == fromHf.HiddenSize;
        return derived && heads > 0 && (hidden != fromHf.HiddenSize || heads != fromHf.NumAttentionHeads) ? hidden / heads : fromHf.KvChannels;
    }

    private static RotaryConfig Rotary(RotaryConfig fromHf, TrainingConfig config)
    {
        var rotary = fromHf with { Base = config.RotaryBase ?? fromHf.Base };
        if (config.RopeScaling is not { } json) return rotary;
        using var document = ConfigJson.ParseObject(json, "--rope_scaling");
        return RopeScalingJson.Apply(document.RootElement, new RotaryConfig { Base = rotary.Base }, "--rope_scaling");
    }

    private static MoeConfig? Experts(ModelConfig fromHf, TrainingConfig config)
    {
        if ((config.NumExperts ?? fromHf.Moe?.NumExperts) is not { } experts) return null;
        return (fromHf.Moe ?? new MoeConfig { NumExperts = experts, FfnHiddenSize = fromHf.FfnHiddenSize, TopK = 2, PreSoftmax = false }) with
        {
            NumExperts = experts,
            FfnHiddenSize = config.MoeFfnHiddenSize ?? fromHf.Moe?.FfnHiddenSize ?? config.FfnHiddenSize ?? fromHf.FfnHiddenSize,
            TopK = config.MoeRouterTopk ?? fromHf.Moe?.TopK ?? 2,
            PreSoftmax = config.MoeRouterPreSoftmax ?? fromHf.Moe?.PreSoftmax ?? false,
            SharedExpertFfnHiddenSize = config.MoeSharedExpertIntermediateSize switch
            {
                null => fromHf.Moe?.SharedExpertFfnHiddenSize,
                0 => null,
                var size => size,
            },
        };
    }
}
