using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// Attention as matrix product, softmax and matrix product: the reference, in every dtype, with dropout and with scores of [S, S] in
/// memory. Query heads of a group share their key head by standing in one matrix; nothing is repeated.
/// </summary>
/// <remarks>Shape letters: B batch, S tokens of a segment, N query heads, G key/value heads, R = N / G, D channels, b = B·G.</remarks>
internal sealed class UnfusedAttention(AttentionShape shape, AttentionOptions options, double dropout, long seed) : IAttentionKernel
{
    private const int Probabilities = 0, Keep = 1;

    /// <inheritdoc/>
    public Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var query_bRSD = GroupHeads(inputs.Query);
        var key_bSD = GroupHeads(inputs.Key);
        var value_bSD = GroupHeads(inputs.Value);
        var probabilities = Softmax(query_bRSD, key_bSD, group.SeqLen);
        saved.Keep(Probabilities, probabilities);
        if (dropout > 0 && saved.Context.IsTraining)
        {
            var keep = MakeKeep(group, saved.Context, probabilities);
            saved.Keep(Keep, keep);
            probabilities = probabilities.mul(keep).mul_(1.0 / (1.0 - dropout));
        }
        return UngroupHeads(probabilities.bmm(value_bSD), group).contiguous().MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput_bRSD = GroupHeads(gradOutput);
        var probabilities = saved.Take(Probabilities);
        var gradProbabilities = gradOutput_bRSD.bmm(GroupHeads(inputs.Value).transpose(1, 2));
        var weights = probabilities;
        if (saved.Has(Keep))
        {
            var keep = saved.Take(Keep);
            weights = probabilities.mul(keep).mul_(1.0 / (1.0 - dropout));
            gradProbabilities.mul_(keep).mul_(1.0 / (1.0 - dropout));
        }
        var gradValue = UngroupHeads(weights.transpose(1, 2).bmm(gradOutput_bRSD), group);

        var gradScores = SoftmaxBackward(gradProbabilities, probabilities);
        var gradQuery = UngroupHeads(gradScores.bmm(GroupHeads(inputs.Key)).mul_(shape.Scale), group);
        var gradKey = UngroupHeads(gradScores.transpose(1, 2).bmm(GroupHeads(inputs.Query)).mul_(shape.Scale), group);
        return new AttentionGradients(gradQuery.MoveToOuterDisposeScope(), gradKey.MoveToOuterDisposeScope(), gradValue.MoveToOuterDisposeScope());
    }

    private Tensor Softmax(Tensor query_bRSD, Tensor key_bSD, int seqLen)
    {
        using var scope = NewDisposeScope();
        var layerNumber = options.QueryKeyLayerScaling ? shape.LayerIndex + 1 : 1;
        var scores = query_bRSD.mul(shape.Scale / layerNumber).bmm(key_bSD.transpose(1, 2));
        scores.view(scores.shape[0], -1, seqLen, seqLen).add_(CausalMask(seqLen, scores.dtype, scores.device));
        var isWide = scores.element_size() >= 4;
        if (!isWide && (options.SoftmaxInFp32 || layerNumber > 1)) scores = scores.to_type(ScalarType.Float32);
        if (layerNumber > 1) scores.mul_(layerNumber);
        return scores.softmax(-1).to_type(query_bRSD.dtype).MoveToOuterDisposeScope();
    }

    /// <summary>dS = P ∘ (dP − rowsum(dP ∘ P)), in fp32 for 16-bit probabilities.</summary>
    private static Tensor SoftmaxBackward(Tensor gradProbabilities, Tensor probabilities)
    {
        using var scope = NewDisposeScope();
        var isWide = probabilities.element_size() >= 4;
        var wide = isWide ? probabilities : probabilities.to_type(ScalarType.Float32);
        var product = (isWide ? gradProbabilities : gradProbabilities.to_type(ScalarType.Float32)).mul_(wide);
        product.addcmul_(wide, product.sum(dim: -1, keepdim: true), value: -1);
        return product.to_type(probabilities.dtype).MoveToOuterDisposeScope();
    }

    /// <summary>[B, S, heads, D] to [B·G, R·S, D]: the heads of a group one after another.</summary>
    private Tensor GroupHeads(Tensor x)
    {
        var (batch, seqLen, heads) = (x.shape[0], x.shape[1], x.shape[2]);
        return x.transpose(1, 2).reshape(batch * shape.NumGroups, heads / shape.NumGroups * seqLen, shape.HeadDim);
    }

    /// <summary>The inverse of <see cref="GroupHeads"/>, as a view.</summary>
    private Tensor UngroupHeads(Tensor x, SegmentGroup group) => x.view(group.BatchSize, -1, group.SeqLen, shape.HeadDim).transpose(1, 2);

    /// <summary>[S, S]: 0 on and below the diagonal, −infinity above.</summary>
    private static Tensor CausalMask(int seqLen, ScalarType dtype, Device device) =>
        full([seqLen, seqLen], double.NegativeInfinity, dtype, device).triu(1);

    /// <summary>
    /// [B·G, R·S, S] decisions. Coordinates: global token of the query, global head, position of the key in its sample.
    /// </summary>
    private Tensor MakeKeep(SegmentGroup group, ForwardContext context, Tensor probabilities)
    {
        var random = CounterRandom.ForStream(seed, context.Step, Dropout.StreamOf(shape.LayerIndex, DropoutStream.AttentionProbabilities));
        var keep = empty(probabilities.shape, ScalarType.Bool, CPU);
        var bytes = keep.bytes;
        var row = 0;
        for (var sample = 0; sample < group.BatchSize; sample++)
            for (var head = 0; head < shape.NumHeads; head++)
                for (var query = 0; query < group.SeqLen; query++, row++)
                {
                    var token = context.Batch.GlobalTokenIndex[group.Start + sample * group.SeqLen + query];
                    var decisions = bytes.Slice(row * group.SeqLen, group.SeqLen);
                    random.FillKeep(decisions[..(query + 1)], (ulong)token, (uint)(shape.FirstHead + head), dropout);
                    decisions[(query + 1)..].Clear();
                }
        return probabilities.device.type == DeviceType.CPU ? keep : keep.to(probabilities.device);
    }
}
