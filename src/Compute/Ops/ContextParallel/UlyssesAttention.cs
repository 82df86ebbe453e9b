using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// Attention over a context-parallel group by exchanging tokens for heads (DeepSpeed-Ulysses, arXiv 2309.14509): an all-to-all gives each
/// rank the whole row for 1/cp of its heads, ordinary attention follows, and a second all-to-all gives back 1/cp of the tokens with all
/// heads. The backward is the same with gradients.
/// </summary>
/// <remarks>
/// Bytes that a rank sends for one layer and micro-batch, t tokens on the rank, e bytes per element: forward and backward each
/// (cp − 1)/cp·t·(2N + 2G)·D·e. Shape letters: T tokens of the row, t = T / cp, N query heads, G key/value heads, n = N / cp, g = G / cp,
/// D channels of a head.
/// </remarks>
/// <param name="shape">n and g heads; <see cref="AttentionShape.FirstHead"/> is the first of this rank's n.</param>
/// <param name="core">Attention with that shape.</param>
/// <param name="group">The context-parallel group.</param>
public sealed class UlyssesAttention(AttentionShape shape, CoreAttention core, ProcessGroup group) : ICoreAttention
{
    /// <inheritdoc/>
    public Tensor Forward(Tensor q_TND, Tensor k_TGD, Tensor v_TGD, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (queries, groups) = (shape.NumHeads, shape.NumGroups);
        var heads = TokensToHeads(cat([ByRank(q_TND), ByRank(k_TGD), ByRank(v_TGD)], 2), saved.Context); // [T, n + 2g, D]
        var attended_TnD = core.Forward(heads.narrow(1, 0, queries), heads.narrow(1, queries, groups), heads.narrow(1, queries + groups, groups), saved.Child(0));
        return HeadsToTokens(attended_TnD, saved.Context).reshape(q_TND.shape).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    public AttentionGradients Backward(Tensor gradOutput_TND, Saved saved)
    {
        using var scope = NewDisposeScope();
        var (queries, groups) = (shape.NumHeads, shape.NumGroups);
        var gradOutput_TnD = TokensToHeads(ByRank(gradOutput_TND), saved.Context);
        var (gradQuery, gradKey, gradValue) = core.Backward(gradOutput_TnD, saved.Child(0));
        var gradients = HeadsToTokens(cat([gradQuery, gradKey, gradValue], 1), saved.Context); // [t, cp, n + 2g, D]
        return new AttentionGradients(AllHeads(gradients, 0, queries), AllHeads(gradients, queries, groups), AllHeads(gradients, queries + groups, groups));
    }

    /// <summary>Some of the heads of each rank, [t, cp, h, D], as [t, cp · h, D] in the scope around the caller's.</summary>
    private static Tensor AllHeads(Tensor x, int first, int heads) =>
        x.narrow(2, first, heads).reshape(x.shape[0], -1, x.shape[3]).MoveToOuterDisposeScope();

    /// <summary>[t, heads, D] as [t, cp, heads / cp, D], a view: the second dimension is the rank that will hold the heads.</summary>
    private Tensor ByRank(Tensor x) => x.view(x.shape[0], group.Size, x.shape[1] / group.Size, x.shape[2]);

    /// <summary>[t, cp, h, D] to [T, h, D]: all tokens in the order of the row, this rank's heads.</summary>
    private Tensor TokensToHeads(Tensor x, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var exchanged = Exchange(x.transpose(0, 1).contiguous());
        return exchanged.view(-1, x.shape[2], x.shape[3]).index_select(0, context.ZigZag.ToRow).MoveToOuterDisposeScope();
    }

    /// <summary>The inverse of <see cref="TokensToHeads"/>; [t, cp, h, D], strided.</summary>
    private Tensor HeadsToTokens(Tensor x, ForwardContext context)
    {
        using var scope = NewDisposeScope();
        var dealt = x.index_select(0, context.ZigZag.ToRanks).view(group.Size, -1, x.shape[1], x.shape[2]);
        return Exchange(dealt).transpose(0, 1).MoveToOuterDisposeScope();
    }

    /// <summary>[cp, t, h, D], first dimension the receiver, to the same with the sender first.</summary>
    private Tensor Exchange(Tensor input)
    {
        var output = empty_like(input);
        long[] one = [.. Enumerable.Repeat(1L, group.Size)];
        group.AllToAll(output, input, one, one).Wait();
        return output;
    }
}
