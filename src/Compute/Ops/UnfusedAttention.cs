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

    private readonly AttentionScores scores = new(shape, options);
    private readonly AttentionKeep decisions = new(shape, dropout, seed);

    /// <inheritdoc/>
    public Tensor Forward(SegmentGroup group, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var query_bRSD = scores.GroupHeads(inputs.Query);
        var key_bSD = scores.GroupHeads(inputs.Key);
        var value_bSD = scores.GroupHeads(inputs.Value);
        var probabilities = Softmax(query_bRSD, key_bSD);
        saved.Keep(Probabilities, probabilities);
        if (dropout > 0 && saved.Context.IsTraining)
        {
            var whole = new PositionRange(0, group.SeqLen);
            var keep = decisions.Make(saved.Context, saved.Context.WholeRow, group, whole, [whole], probabilities.device);
            saved.Keep(Keep, keep);
            probabilities = probabilities.mul(keep).mul_(1.0 / (1.0 - dropout));
        }
        return Ungroup(probabilities.bmm(value_bSD), group).contiguous().MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(SegmentGroup group, Tensor gradOutput, AttentionInputs inputs, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput_bRSD = scores.GroupHeads(gradOutput);
        var probabilities = saved.Take(Probabilities);
        var gradProbabilities = gradOutput_bRSD.bmm(scores.GroupHeads(inputs.Value).transpose(1, 2));
        var weights = probabilities;
        if (saved.Has(Keep))
        {
            var keep = saved.Take(Keep);
            weights = probabilities.mul(keep).mul_(1.0 / (1.0 - dropout));
            gradProbabilities.mul_(keep).mul_(1.0 / (1.0 - dropout));
        }
        var gradValue = Ungroup(weights.transpose(1, 2).bmm(gradOutput_bRSD), group);

        var gradScores = SoftmaxBackward(gradProbabilities, probabilities);
        var gradQuery = Ungroup(gradScores.bmm(scores.GroupHeads(inputs.Key)).mul_(shape.Scale), group);
        var gradKey = Ungroup(gradScores.transpose(1, 2).bmm(scores.GroupHeads(inputs.Query)).mul_(shape.Scale), group);
        return new AttentionGradients(gradQuery.MoveToOuterDisposeScope(), gradKey.MoveToOuterDisposeScope(), gradValue.MoveToOuterDisposeScope());
    }

    private Tensor Softmax(Tensor query_bRSD, Tensor key_bSD)
    {
        using var scope = NewDisposeScope();
        return scores.Compute(query_bRSD, key_bSD, isCausal: true).softmax(-1).to_type(query_bRSD.dtype).MoveToOuterDisposeScope();
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

    private static Tensor Ungroup(Tensor x, SegmentGroup group) => AttentionScores.UngroupHeads(x, group.BatchSize, group.SeqLen);
}
