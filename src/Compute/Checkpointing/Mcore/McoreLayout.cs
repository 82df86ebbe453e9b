using Megatron.Compute.Configuration;
using Megatron.Compute.Models;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>Consecutive rows that a Hugging Face tensor and a tensor of Megatron-LM share.</summary>
/// <param name="HfRow">First row in the Hugging Face tensor.</param>
/// <param name="McoreRow">First row in the tensor of Megatron-LM.</param>
/// <param name="Count">Rows.</param>
internal sealed record RowRun(long HfRow, long McoreRow, long Count);

/// <summary>Where a Hugging Face tensor lies in a checkpoint of Megatron-LM.</summary>
/// <param name="Key">Name of the tensor there.</param>
/// <param name="Leading">Indices of the leading axes: layer, then expert.</param>
/// <param name="Runs">Its rows.</param>
internal sealed record McorePlace(string Key, long[] Leading, IReadOnlyList<RowRun> Runs);

/// <summary>
/// The names and fusions of Megatron-LM (megatron-swift reference 5.3): q, k and v interleaved by query group, gate rows above up rows, layers and
/// experts stacked on leading axes unless layers differ, vocabulary padded at its end.
/// </summary>
internal static class McoreLayout
{
    /// <summary>Finds every tensor of the architecture that the checkpoint has.</summary>
    /// <returns>Places by Hugging Face name.</returns>
    public static IReadOnlyDictionary<string, McorePlace> Map(ModelConfig model, IReadOnlyDictionary<string, DcpTensor> tensors)
    {
        var places = new Dictionary<string, McorePlace>(StringComparer.Ordinal);
        foreach (var tensor in HfTensorCatalog.Of(model))
            if (Find(tensor, model, tensors) is { } place) places.Add(tensor.Name, place);
        return places;
    }

    private static McorePlace? Find(HfTensorShape tensor, ModelConfig model, IReadOnlyDictionary<string, DcpTensor> tensors)
    {
        var whole = Rows(tensor);
        if (tensor.Name == HfTensorNames.Embedding) return Plain("embedding.word_embeddings.weight", whole, tensor, tensors);
        if (tensor.Name == HfTensorNames.Head) return Plain("output_layer.weight", whole, tensor, tensors);
        if (tensor.Name == HfTensorNames.FinalNorm) return Plain("decoder.final_layernorm.weight", whole, tensor, tensors);
        var parts = tensor.Name.Split('.', 4); // model.layers.L.rest
        var layer = long.Parse(parts[2], System.Globalization.CultureInfo.InvariantCulture);
        return InLayer(parts[3], layer, tensor, model, tensors);
    }

    private static McorePlace? InLayer(string name, long layer, HfTensorShape tensor, ModelConfig model, IReadOnlyDictionary<string, DcpTensor> tensors)
    {
        var whole = Rows(tensor);
        string[] keys = name switch
        {
            "input_layernorm.weight" => ["self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"],
            "post_attention_layernorm.weight" => ["mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"],
            "self_attn.o_proj.weight" => ["self_attention.linear_proj.weight"],
            "self_attn.q_norm.weight" => ["self_attention.q_layernorm.weight"],
            "self_attn.k_norm.weight" => ["self_attention.k_layernorm.weight"],
            "mlp.gate.weight" => ["mlp.router.weight"],
            "mlp.down_proj.weight" => ["mlp.linear_fc2.weight"],
            "mlp.shared_expert.down_proj.weight" => ["mlp.shared_experts.linear_fc2.weight"],
            "mlp.shared_expert_gate.weight" => ["mlp.shared_experts.gate_weight"],
            _ => [],
        };
        if (keys.Length > 0) return keys.Select(key => OfLayer(key, layer, [], whole, tensor, tensors)).FirstOrDefault(place => place is not null);
        if (name.StartsWith("self_attn.", StringComparison.Ordinal))
            return OfLayer($"self_attention.linear_qkv.{name.Split('.')[2]}", layer, [], QkvRows(name[10], model), tensor, tensors);
        IReadOnlyList<RowRun> gated = name.EndsWith("up_proj.weight", StringComparison.Ordinal) ? [new RowRun(0, tensor.Shape[0], tensor.Shape[0])] : whole;
        if (name.StartsWith("mlp.shared_expert.", StringComparison.Ordinal)) return OfLayer("mlp.shared_experts.linear_fc1.weight", layer, [], gated, tensor, tensors);
        if (!name.StartsWith("mlp.experts.", StringComparison.Ordinal)) return OfLayer("mlp.linear_fc1.weight", layer, [], gated, tensor, tensors);
        var words = name.Split('.'); // mlp.experts.E.proj.weight
        var expert = long.Parse(words[2], System.Globalization.CultureInfo.InvariantCulture);
        var matrix = words[3] == "down_proj" ? "linear_fc2.weight" : "linear_fc1.weight";
        return OfLayer($"mlp.experts.experts.{matrix}", layer, [expert], gated, tensor, tensors)
            ?? OfLayer($"mlp.experts.local_experts.{words[2]}.{matrix}", layer, [], gated, tensor, tensors);
    }

    /// <summary>Layers that are all alike are stacked; otherwise each has its number in the name.</summary>
    private static McorePlace? OfLayer(
        string key, long layer, long[] leading, IReadOnlyList<RowRun> runs, HfTensorShape tensor, IReadOnlyDictionary<string, DcpTensor> tensors) =>
        Fit(new McorePlace($"decoder.layers.{key}", [layer, .. leading], runs), tensor, tensors)
        ?? Fit(new McorePlace($"decoder.layers.{layer.ToString(System.Globalization.CultureInfo.InvariantCulture)}.{key}", leading, runs), tensor, tensors);

    private static McorePlace? Plain(string key, IReadOnlyList<RowRun> runs, HfTensorShape tensor, IReadOnlyDictionary<string, DcpTensor> tensors) =>
        Fit(new McorePlace(key, [], runs), tensor, tensors);

    /// <summary>The place, when the checkpoint has a tensor there that is large enough and as wide.</summary>
    private static McorePlace? Fit(McorePlace place, HfTensorShape tensor, IReadOnlyDictionary<string, DcpTensor> tensors)
    {
        if (!tensors.TryGetValue(place.Key, out var found) || found.Shape.Length != place.Leading.Length + tensor.Shape.Length) return null;
        var own = found.Shape[place.Leading.Length..];
        return place.Leading.Zip(found.Shape).All(pair => pair.First < pair.Second)
            && own.AsSpan(1).SequenceEqual(tensor.Shape.AsSpan(1)) && place.Runs.All(run => run.McoreRow + run.Count <= own[0])
            ? place
            : null;
    }

    private static IReadOnlyList<RowRun> Rows(HfTensorShape tensor) => [new RowRun(0, 0, tensor.Shape[0])];

    /// <summary>For each query group the rows of its heads, then one key head, then one value head.</summary>
    private static IReadOnlyList<RowRun> QkvRows(char kind, ModelConfig model)
    {
        long queries = (long)model.NumAttentionHeads / model.NumQueryGroups * model.KvChannels, group = queries + 2L * model.KvChannels;
        var (start, count) = kind switch
        {
            'q' => (0L, queries),
            'k' => (queries, model.KvChannels),
            _ => (queries + model.KvChannels, model.KvChannels),
        };
        return [.. Enumerable.Range(0, model.NumQueryGroups).Select(index => new RowRun(index * count, index * group + start, count))];
    }
}
