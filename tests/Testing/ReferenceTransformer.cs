using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Testing;

/// <summary>
/// The transformer of our models as plain functions of libtorch operations, for autograd to differentiate: no explicit backward, no packing
/// tricks (one [T, T] mask), heads repeated. The oracle of the layers and of a whole model.
/// </summary>
/// <param name="config">Architecture; dropout probabilities included.</param>
/// <param name="context">The micro-batch.</param>
/// <param name="seed">Dropout seed, as the layers have it.</param>
public sealed class ReferenceTransformer(ModelConfig config, ForwardContext context, long seed)
{
    private readonly MicroBatch batch = context.Batch;

    /// <summary>weight · x / rms(x).</summary>
    public Tensor Norm(Tensor x, Tensor weight) => x * (x.pow(2).mean([-1], keepdim: true) + config.NormEpsilon).rsqrt() * weight;

    /// <summary>The MLP of [T, H] with the fused gate|up weight.</summary>
    public static Tensor Mlp(Tensor x, Tensor gateUp, Tensor down)
    {
        var halves = nn.functional.linear(x, gateUp).chunk(2, -1);
        return nn.functional.linear(nn.functional.silu(halves[0]) * halves[1], down);
    }

    /// <summary>Attention block of [T, H].</summary>
    /// <param name="weights">qkv weight, its bias if any, q and k norm if any, output weight: consumed in that order.</param>
    public Tensor Attention(Tensor x, Queue<Tensor> weights, int layerIndex)
    {
        var (heads, groups, dim) = (config.NumAttentionHeads, config.NumQueryGroups, config.KvChannels);
        var qkv = nn.functional.linear(x, weights.Dequeue(), config.AddQkvBias ? weights.Dequeue() : null).view(-1, heads + 2 * groups, dim);
        var parts = qkv.split([heads, groups, groups], 1);
        var (query, key, value) = (parts[0], parts[1], parts[2]);
        if (config.QkLayerNorm) (query, key) = (Norm(query, weights.Dequeue()), Norm(key, weights.Dequeue()));
        var attended = Core(Rotate(query), Rotate(key), value, layerIndex);
        return nn.functional.linear(attended.reshape(-1, heads * dim), weights.Dequeue());
    }

    /// <summary>One block of [T, H]; weights in the order of <c>TransformerLayer.Parameters</c>.</summary>
    public Tensor Layer(Tensor x, Queue<Tensor> weights, int layerIndex)
    {
        var attended = Attention(Norm(x, weights.Dequeue()), weights, layerIndex);
        var hidden = x + HiddenDropout(attended, layerIndex, DropoutStream.AttentionOutput);
        var output = Mlp(Norm(hidden, weights.Dequeue()), weights.Dequeue(), weights.Dequeue());
        return hidden + HiddenDropout(output, layerIndex, DropoutStream.MlpOutput);
    }

    /// <summary>The loss sum of the micro-batch; weights in the order of <c>GptModel.Parameters</c>.</summary>
    public Tensor Loss(IReadOnlyList<Tensor> parameters)
    {
        var weights = new Queue<Tensor>(parameters);
        var embedding = weights.Dequeue();
        var hidden = HiddenDropout(embedding.index_select(0, context.TokenIds), 0, DropoutStream.Embedding);
        for (var i = 0; i < config.NumLayers; i++) hidden = Layer(hidden, weights, i);
        hidden = Norm(hidden, weights.Dequeue());
        var logits = nn.functional.linear(hidden, config.TieWordEmbeddings ? embedding : weights.Dequeue());
        var losses = nn.functional.cross_entropy(logits, context.Labels, ignore_index: MicroBatch.IgnoreIndex, reduction: nn.Reduction.None);
        return (losses * context.LossWeights.to_type(losses.dtype)).sum();
    }

    /// <summary>Attention of q [T, N, D], k and v [T, G, D] with a mask over the whole row; padding rows give 0.</summary>
    public Tensor Core(Tensor query, Tensor key, Tensor value, int layerIndex)
    {
        var (heads, groups, dim) = (config.NumAttentionHeads, config.NumQueryGroups, config.KvChannels);
        var keys = key.repeat_interleave(heads / groups, 1).permute(1, 2, 0);
        var values = value.repeat_interleave(heads / groups, 1).transpose(0, 1);
        var scores = query.transpose(0, 1).matmul(keys) * (1.0 / Math.Sqrt(dim));
        var weights = scores.masked_fill(Forbidden(), double.NegativeInfinity).softmax(-1);
        if (config.AttentionDropout > 0 && context.IsTraining)
            weights = weights * AttentionKeep(layerIndex).to_type(weights.dtype) / (1 - config.AttentionDropout);
        var isReal = arange(batch.NumTokens).lt(batch.NumTokens - batch.NumPaddingTokens).view(-1, 1, 1);
        return weights.matmul(values).transpose(0, 1) * isReal;
    }

    private Tensor Rotate(Tensor x)
    {
        var (frequencies, magnitude) = RotaryFrequencies.Compute(config.Rotary, config.KvChannels, config.MaxPositionEmbeddings);
        var angles = context.Positions.to_type(ScalarType.Float32).unsqueeze(1) * tensor(frequencies);
        var cos = (cat([angles, angles], 1).cos() * magnitude).to_type(x.dtype).unsqueeze(1);
        var sin = (cat([angles, angles], 1).sin() * magnitude).to_type(x.dtype).unsqueeze(1);
        var halves = x.chunk(2, -1);
        return x * cos + cat([-halves[1], halves[0]], -1) * sin;
    }

    private Tensor HiddenDropout(Tensor x, int layerIndex, DropoutStream stream)
    {
        if (config.HiddenDropout == 0 || !context.IsTraining) return x;
        var random = CounterRandom.ForStream(seed, context.Step, Dropout.StreamOf(layerIndex, stream));
        var keep = new bool[batch.NumTokens * config.HiddenSize];
        for (var i = 0; i < keep.Length; i++)
            keep[i] = IsKept(random, batch.GlobalTokenIndex[i / config.HiddenSize], 0, i % config.HiddenSize, config.HiddenDropout);
        return x * tensor(keep).view(-1, config.HiddenSize) / (1 - config.HiddenDropout);
    }

    private Tensor AttentionKeep(int layerIndex)
    {
        var random = CounterRandom.ForStream(seed, context.Step, Dropout.StreamOf(layerIndex, DropoutStream.AttentionProbabilities));
        var (heads, tokens) = (config.NumAttentionHeads, batch.NumTokens);
        var keep = new bool[heads * tokens * tokens];
        for (var i = 0; i < keep.Length; i++)
        {
            var (head, query, key) = (i / tokens / tokens, i / tokens % tokens, i % tokens);
            keep[i] = IsKept(random, batch.GlobalTokenIndex[query], head, batch.Positions[key], config.AttentionDropout);
        }
        return tensor(keep).view(heads, tokens, tokens);
    }

    private static bool IsKept(CounterRandom random, long token, int subStream, int feature, double probability)
    {
        var (x0, x1, x2, x3) = random.Block((uint)feature / 4, (uint)subStream, (uint)token, (uint)(token >> 32));
        uint[] numbers = [x0, x1, x2, x3];
        return numbers[feature % 4] >= (uint)(probability * 4294967296.0);
    }

    /// <summary>[T, T]: true where the key lies in another segment or after the query.</summary>
    private Tensor Forbidden()
    {
        var tokens = batch.NumTokens;
        var forbidden = new bool[tokens * tokens];
        for (var query = 0; query < tokens; query++)
            for (var key = 0; key < tokens; key++)
                forbidden[query * tokens + key] = key > query || SegmentOf(key) != SegmentOf(query);
        return tensor(forbidden).view(tokens, tokens);
    }

    private int SegmentOf(int token)
    {
        var segment = 0;
        while (batch.CuSeqLens[segment + 1] <= token) segment++;
        return segment;
    }
}
