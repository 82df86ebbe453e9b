using System.Text.Json;

namespace Megatron.Compute.Models;

/// <summary>Keys of config.json that change the arithmetic in ways that are not computed here: each is refused by name and value.</summary>
internal static class HfConfigRefusals
{
    private const string Advice = "is not supported; choose another model";

    /// <summary>Any value but null is refused.</summary>
    private static readonly string[] mustBeAbsent =
    [
        "quantization_config", "compression_config", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "clip_qkv",
        "no_rope_layers", "attention_chunk_size", "kv_lora_rank", "q_lora_rank", "num_nextn_predict_layers", "vision_config", "mrope_section",
    ];

    /// <summary>Only false (or absent) is computed.</summary>
    private static readonly string[] mustBeFalse =
    [
        "mlp_bias", "use_qk_norm", "alibi", "use_mrope", "rope_interleaved", "use_bidirectional_attention", "add_cross_attention",
        "is_encoder_decoder", "parallel_attn",
    ];

    /// <summary>Multipliers of other families: only 1 (or absent) is computed.</summary>
    private static readonly string[] mustBeOne =
        ["partial_rotary_factor", "rotary_pct", "logit_scale", "logits_scaling", "residual_multiplier", "embedding_multiplier", "scale_emb"];

    /// <summary>Notes every refused key in <paramref name="fields"/>.</summary>
    public static void Check(HfConfigFields fields, ModelFamily family)
    {
        foreach (var key in mustBeAbsent)
            if (fields.Has(key)) fields.Refuse(key, Advice);
        foreach (var key in mustBeFalse)
            if (fields.Flag(key)) fields.Refuse(key, Advice);
        foreach (var key in mustBeOne)
            if (fields.NumberOr(key, 1) != 1) fields.Refuse(key, Advice);
        CheckActivation(fields);
        CheckBiases(fields, family);
        CheckSlidingWindow(fields);
    }

    private static void CheckActivation(HfConfigFields fields)
    {
        if (fields.Has("hidden_act") && fields.Text("hidden_act") is not ("silu" or "swish"))
            fields.Refuse("hidden_act", "is not supported; only silu is");
    }

    private static void CheckBiases(HfConfigFields fields, ModelFamily family)
    {
        if (fields.Flag("attention_bias") && !family.HasQkvBias)
            fields.Refuse("attention_bias", $"is not supported for {family.Architecture}: it puts a bias on o_proj too");
        if (family.HasQkvBias && fields.Has("qkv_bias") && !fields.Flag("qkv_bias"))
            fields.Refuse("qkv_bias", $"is not supported for {family.Architecture}: its q, k and v have biases");
    }

    /// <summary>A window that no layer uses (as in most published files) is harmless.</summary>
    private static void CheckSlidingWindow(HfConfigFields fields)
    {
        if (fields.Find("layer_types") is { ValueKind: JsonValueKind.Array } types)
        {
            if (types.EnumerateArray().Any(type => type.ToString() != "full_attention")) fields.Refuse("layer_types", Advice);
            return;
        }
        var firstWindowLayer = fields.NumberOr("max_window_layers", 0);
        var hasWindow = fields.Flag("use_sliding_window") && fields.NumberOr("sliding_window", 0) > 0;
        if (hasWindow && firstWindowLayer < fields.NumberOr("num_hidden_layers", 0))
            fields.Refuse("sliding_window", $"is used from layer {firstWindowLayer} on, which is not supported; choose a model with full attention");
    }
}
