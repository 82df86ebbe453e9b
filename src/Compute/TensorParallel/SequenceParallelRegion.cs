using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// The collectives at the borders of a tensor-parallel region (arXiv 1909.08053, section 3; with sequence parallelism arXiv 2205.05198,
/// section 4.2.2). Outside the region activations are whole on every rank or, with sequence parallelism, split along the tokens; inside
/// they are whole along the tokens and split along the features. Everything is the identity in a group of one.
/// </summary>
/// <remarks>Shape letters: T tokens of the row, t = T / tp with sequence parallelism else T, H features.</remarks>
/// <param name="group">The tensor-parallel group.</param>
/// <param name="sequenceParallel">Outside the region the tokens are split over the group.</param>
public sealed class SequenceParallelRegion(ProcessGroup group, bool sequenceParallel)
{
    /// <summary>The tensor-parallel group.</summary>
    public ProcessGroup Group => group;

    /// <summary>True when tokens are split over more than one rank outside the region.</summary>
    public bool IsActive => sequenceParallel && group.Size > 1;

    /// <summary>Index in the micro-batch of this rank's first token outside the region.</summary>
    /// <param name="localTokens">Tokens this rank holds.</param>
    public int FirstToken(long localTokens) => IsActive ? (int)(group.Rank * localTokens) : 0;

    /// <summary>
    /// The tokens this rank works on where work is shared out by tokens (routing): those it holds under sequence parallelism, else a stretch of
    /// the whole row that every rank holds, so that no rank repeats another's.
    /// </summary>
    /// <param name="localTokens">Tokens this rank holds.</param>
    public TokenShare ShareOf(long localTokens)
    {
        if (IsActive) return new TokenShare(FirstToken(localTokens), FirstToken(localTokens) + (int)localTokens, FirstToken(localTokens));
        return new TokenShare((int)(localTokens * group.Rank / group.Size), (int)(localTokens * (group.Rank + 1) / group.Size), 0);
    }

    /// <summary>
    /// Puts the shares of all ranks together after each worked on its own: [t, H] with zeros outside this rank's share. A sum over the group when
    /// every rank holds the whole row, in place; else nothing to do.
    /// </summary>
    public void JoinShares(Tensor x_tH)
    {
        if (IsActive || group.Size == 1) return;
        using var allReduce = group.AllReduce(x_tH, ReduceOp.Sum);
    }

    /// <summary>Forward entry, and backward exit of the gradient: [t, H] to [T, H] (all-gather), or an alias.</summary>
    public Tensor Gather(Tensor x_tH)
    {
        if (!IsActive) return x_tH.alias();
        using var input = x_tH.contiguous();
        var output = empty([x_tH.shape[0] * group.Size, .. x_tH.shape[1..]], x_tH.dtype, x_tH.device);
        using var work = group.AllGather(output, input);
        return output;
    }

    /// <summary>
    /// Forward exit, and backward entry of the gradient: sums partial [T, H] over the group into [t, H] (reduce-scatter) or, in place, [T, H]
    /// (all-reduce).
    /// </summary>
    /// <param name="partial_TH">A tensor the caller owns; consumed.</param>
    /// <exception cref="InvalidOperationException">T does not divide by the group's size.</exception>
    public Tensor Reduce(Tensor partial_TH)
    {
        if (group.Size == 1) return partial_TH.alias();
        if (!IsActive)
        {
            using var allReduce = group.AllReduce(partial_TH, ReduceOp.Sum);
            return partial_TH.alias();
        }
        var rows = partial_TH.shape[0];
        if (rows % group.Size != 0)
            throw new InvalidOperationException($"Sequence parallelism splits the row evenly: {rows} tokens do not divide by tp = {group.Size}.");
        var output = empty([rows / group.Size, .. partial_TH.shape[1..]], partial_TH.dtype, partial_TH.device);
        using var reduceScatter = group.ReduceScatter(output, partial_TH, ReduceOp.Sum);
        return output;
    }
}
