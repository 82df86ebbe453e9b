using Megatron.Compute.Configuration;

namespace Megatron.Compute.Models;

/// <summary>A tensor of a Hugging Face checkpoint.</summary>
/// <param name="Name">Hugging Face name.</param>
/// <param name="Shape">Its whole shape.</param>
public sealed record HfTensorShape(string Name, long[] Shape);

/// <summary>All tensors of an architecture, whatever the layout: what a weight folder must hold and what an export writes.</summary>
public static class HfTensorCatalog
{
    /// <summary>Names and whole shapes in ordinal order of the names, which is Hugging Face's order in files.</summary>
    public static IReadOnlyList<HfTensorShape> Of(ModelConfig model)
    {
        var tensors = new List<HfTensorShape>
        {
            new(HfTensorNames.Embedding, [model.VocabSize, model.HiddenSize]),
            new(HfTensorNames.FinalNorm, [model.HiddenSize]),
        };
        if (!model.TieWordEmbeddings) tensors.Add(new HfTensorShape(HfTensorNames.Head, [model.VocabSize, model.HiddenSize]));
        for (var layer = 0; layer < model.NumLayers; layer++)
        {
            var prefix = HfTensorNames.Layer(layer);
            AddAttention(tensors, prefix, model);
            if (model.IsMoeLayer(layer) && model.Moe is { } moe) AddExperts(tensors, prefix, model, moe);
            else AddMlp(tensors, $"{prefix}.mlp", model.HiddenSize, model.FfnHiddenSize);
        }
        return [.. tensors.OrderBy(tensor => tensor.Name, StringComparer.Ordinal)];
    }

    private static void AddAttention(List<HfTensorShape> tensors, string prefix, ModelConfig model)
    {
        long hidden = model.HiddenSize, queries = (long)model.NumAttentionHeads * model.KvChannels, keys = (long)model.NumQueryGroups * model.KvChannels;
        tensors.Add(new HfTensorShape($"{prefix}.input_layernorm.weight", [hidden]));
        tensors.Add(new HfTensorShape($"{prefix}.post_attention_layernorm.weight", [hidden]));
        foreach (var (name, width) in ((string, long)[])[("q_proj", queries), ("k_proj", keys), ("v_proj", keys)])
        {
            tensors.Add(new HfTensorShape($"{prefix}.self_attn.{name}.weight", [width, hidden]));
            if (model.AddQkvBias) tensors.Add(new HfTensorShape($"{prefix}.self_attn.{name}.bias", [width]));
        }
        tensors.Add(new HfTensorShape($"{prefix}.self_attn.o_proj.weight", [hidden, queries]));
        if (!model.QkLayerNorm) return;
        tensors.Add(new HfTensorShape($"{prefix}.self_attn.q_norm.weight", [model.KvChannels]));
        tensors.Add(new HfTensorShape($"{prefix}.self_attn.k_norm.weight", [model.KvChannels]));
    }

    private static void AddMlp(List<HfTensorShape> tensors, string prefix, long hidden, long width)
    {
        tensors.Add(new HfTensorShape($"{prefix}.gate_proj.weight", [width, hidden]));
        tensors.Add(new HfTensorShape($"{prefix}.up_proj.weight", [width, hidden]));
        tensors.Add(new HfTensorShape($"{prefix}.down_proj.weight", [hidden, width]));
    }

    private static void AddExperts(List<HfTensorShape> tensors, string prefix, ModelConfig model, MoeConfig moe)
    {
        tensors.Add(new HfTensorShape($"{prefix}.mlp.gate.weight", [moe.NumExperts, model.HiddenSize]));
        for (var expert = 0; expert < moe.NumExperts; expert++)
            AddMlp(tensors, $"{prefix}.mlp.experts.{expert}", model.HiddenSize, moe.FfnHiddenSize);
        if (moe.SharedExpertFfnHiddenSize is not { } shared) return;
        AddMlp(tensors, $"{prefix}.mlp.shared_expert", model.HiddenSize, shared);
        tensors.Add(new HfTensorShape($"{prefix}.mlp.shared_expert_gate.weight", [1, model.HiddenSize]));
    }
}
