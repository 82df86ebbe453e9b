using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Inference;

/// <summary>
/// Keys and values of one sequence, all layers. Room grows by doubling up to the model's positions. Not thread-safe; lives on one thread.
/// </summary>
/// <remarks>Shape letters: G key/value heads, N query heads, R = N / G, S new tokens, L tokens with the new ones, C room, D channels of a head.</remarks>
public sealed class KvCache : IDisposable
{
    private const int FirstRoom = 64;

    private readonly Tensor?[] keys_GCD;
    private readonly Tensor?[] values_GCD;
    private readonly int maxTokens;

    /// <summary>Tokens that every layer holds.</summary>
    public int Length { get; private set; }

    /// <param name="numLayers">Layers of the model.</param>
    /// <param name="maxTokens">The model's positions.</param>
    public KvCache(int numLayers, int maxTokens) =>
        (keys_GCD, values_GCD, this.maxTokens) = (new Tensor?[numLayers], new Tensor?[numLayers], maxTokens);

    /// <summary>Copies the new tokens of one layer behind those it holds; <see cref="Advance"/> makes them count.</summary>
    /// <param name="k_SGD">[S, G, D].</param>
    /// <param name="v_SGD">[S, G, D].</param>
    /// <exception cref="InvalidOperationException">More tokens than the model has positions.</exception>
    public void Append(int layer, Tensor k_SGD, Tensor v_SGD)
    {
        using var scope = NewDisposeScope();
        var end = Length + (int)k_SGD.shape[0];
        Put(keys_GCD, layer, k_SGD, end);
        Put(values_GCD, layer, v_SGD, end);
    }

    /// <summary>Attention of the newest tokens over everything the layer holds, <see cref="Append"/>ed ones included.</summary>
    /// <param name="q_SND">[S, N, D].</param>
    /// <returns>[S, N, D], a view.</returns>
    public Tensor Attend(AttentionShape shape, Tensor q_SND)
    {
        using var scope = NewDisposeScope();
        var (numNew, heads, dim) = (q_SND.shape[0], shape.HeadsPerGroup, q_SND.shape[2]);
        var (keys_GLD, values_GLD) = (Held(keys_GCD, shape.LayerIndex, numNew), Held(values_GCD, shape.LayerIndex, numNew));
        // [S, G·R, D] to [G, R·S, D]: the query heads that share a key head stand in one matrix, so nothing is repeated.
        var query_GRD = q_SND.transpose(0, 1).reshape(shape.NumGroups, heads * numNew, dim);
        var scores_GRL = query_GRD.mul(shape.Scale).bmm(keys_GLD.transpose(1, 2));
        if (scores_GRL.element_size() < 4) scores_GRL = scores_GRL.to_type(ScalarType.Float32);
        if (numNew > 1) scores_GRL.view(shape.NumGroups, heads, numNew, -1).add_(CausalMask(numNew, scores_GRL));
        var attended_GRD = scores_GRL.softmax(-1).to_type(q_SND.dtype).bmm(values_GLD);
        return attended_GRD.view(shape.NumHeads, numNew, dim).transpose(0, 1).MoveToOuterDisposeScope();
    }

    /// <summary>Ends a forward pass: the appended tokens of all layers are held from now on.</summary>
    public void Advance(int numTokens) => Length += numTokens;

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var tensor in keys_GCD) tensor?.Dispose();
        foreach (var tensor in values_GCD) tensor?.Dispose();
    }

    private Tensor Held(Tensor?[] tensors, int layer, long numNew) =>
        (tensors[layer] ?? throw new InvalidOperationException($"Layer {layer} was not appended to.")).narrow(1, 0, Length + numNew);

    private void Put(Tensor?[] tensors, int layer, Tensor x_SGD, int end)
    {
        if (end > maxTokens) throw new InvalidOperationException($"A sequence of {end} tokens does not fit into the model's {maxTokens} positions.");
        var room = tensors[layer];
        if (room is null || room.shape[1] < end)
        {
            var size = Math.Min(maxTokens, Math.Max(FirstRoom, 2 * end));
            var larger = empty([x_SGD.shape[1], size, x_SGD.shape[2]], x_SGD.dtype, x_SGD.device);
            if (room is not null) larger.narrow(1, 0, Length).copy_(room.narrow(1, 0, Length));
            room?.Dispose();
            tensors[layer] = room = larger.DetachFromDisposeScope();
        }
        room.narrow(1, Length, end - Length).copy_(x_SGD.transpose(0, 1));
    }

    /// <summary>[S, L]: −infinity where the key comes after the query.</summary>
    private static Tensor CausalMask(long numNew, Tensor scores_GRL)
    {
        var length = scores_GRL.shape[2];
        return full([numNew, length], double.NegativeInfinity, scores_GRL.dtype, scores_GRL.device).triu(length - numNew + 1);
    }
}
