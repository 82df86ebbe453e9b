using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.TensorParallel;

/// <summary>
/// The collectives at the borders of a tensor-parallel region (arXiv 1909.08053, section 3; with sequence parallelism arXiv 2205.05198,
/// section 4.2.2). Outside the region activations are whole on every rank or, with sequence parallelism, split along the tokens; inside
/// they are whole along the tokens and split along the features. Everything is the identity in a group of one.
/// </summary>
/// <remarks>
/// <para>
/// Bytes sent by a rank of p for an activation of B bytes ([T, H] whole): a gather or a reduce-scatter (p − 1)/p · B, an all-reduce twice that;
/// in chunks the same.
/// </para>
/// <para>
/// Overlap (<c>--tp_comm_overlap</c>, with sequence parallelism): the tokens of every rank are cut into chunks, and the collective of one chunk
/// runs beside the product of another. Sums over ranks have the same order as without; a product of fewer rows may add in another order
/// inside the library, so results agree to rounding, not always in every bit.
/// </para>
/// <para>Shape letters: T tokens of the row, t = T / tp with sequence parallelism else T, c tokens of a chunk of one rank, H and O features.</para>
/// </remarks>
/// <param name="group">The tensor-parallel group.</param>
/// <param name="sequenceParallel">Outside the region the tokens are split over the group.</param>
/// <param name="numChunks">Chunks of the overlap; 1 for none.</param>
public sealed class SequenceParallelRegion(ProcessGroup group, bool sequenceParallel, int numChunks = 1)
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
        var output = empty([CheckedLocalRows(partial_TH.shape[0]), .. partial_TH.shape[1..]], partial_TH.dtype, partial_TH.device);
        using var reduceScatter = group.ReduceScatter(output, partial_TH, ReduceOp.Sum);
        return output;
    }

    /// <summary>The product of the gathered input: [t, H] to [T, O].</summary>
    /// <param name="product">Turns rows into as many rows.</param>
    public Tensor GatherThen(Tensor x_tH, Func<Tensor, Tensor> product) => GatherThen(x_tH, product, gathered_TH: null);

    /// <summary>The same; also leaves the gathered input in <paramref name="gathered_TH"/>, which the caller owns.</summary>
    public Tensor GatherThen(Tensor x_tH, Func<Tensor, Tensor> product, out Tensor gathered_TH)
    {
        if (!HasOverlap)
        {
            gathered_TH = Gather(x_tH);
            return product(gathered_TH);
        }
        gathered_TH = empty([x_tH.shape[0] * group.Size, .. x_tH.shape[1..]], x_tH.dtype, x_tH.device);
        return GatherThen(x_tH, product, gathered_TH);
    }

    /// <summary>The reduced product: [T, H] to [t, O].</summary>
    /// <param name="product">Turns rows into as many fresh rows, this rank's share of the sum.</param>
    public Tensor ThenReduce(Tensor x_TH, Func<Tensor, Tensor> product)
    {
        if (!HasOverlap)
        {
            using var partial = product(x_TH);
            return Reduce(partial);
        }
        using var scope = NewDisposeScope();
        var numLocal = CheckedLocalRows(x_TH.shape[0]);
        Tensor? output = null;
        var works = new List<CollectiveWork>(numChunks);
        for (var chunk = 0; chunk < numChunks; chunk++)
        {
            var (first, count) = RowsOf(chunk, numLocal);
            if (count == 0) continue;
            using var chunkScope = NewDisposeScope();
            var partial = product(SelectRows(x_TH, first, count));
            output ??= empty([numLocal, .. partial.shape[1..]], partial.dtype, partial.device).MoveToOuterDisposeScope();
            works.Add(group.ReduceScatter(output.narrow(0, first, count), partial, ReduceOp.Sum));
        }
        foreach (var work in works) work.Wait();
        return (output ?? product(x_TH)).MoveToOuterDisposeScope();
    }

    /// <summary>
    /// Hands the gathered input out chunk by chunk, each with the same rows of <paramref name="other_TO"/>: for sums over tokens, such as a
    /// weight gradient.
    /// </summary>
    /// <param name="body">Takes (rows of the other, rows of the input); the rows live as long as the call.</param>
    public void ForEachGathered(Tensor x_tH, Tensor other_TO, Action<Tensor, Tensor> body)
    {
        if (!HasOverlap)
        {
            using var x_TH = Gather(x_tH);
            body(other_TO, x_TH);
            return;
        }
        GatherChunks(x_tH, (first, count, rows) => body(SelectRows(other_TO, first, count), rows));
    }

    private bool HasOverlap => IsActive && numChunks > 1;

    private Tensor GatherThen(Tensor x_tH, Func<Tensor, Tensor> product, Tensor? gathered_TH)
    {
        if (!HasOverlap)
        {
            using var x_TH = Gather(x_tH);
            return product(x_TH);
        }
        using var scope = NewDisposeScope();
        Tensor? output_pto = null;
        var numLocal = x_tH.shape[0];
        GatherChunks(x_tH, (first, count, rows) =>
        {
            var part = product(rows);
            output_pto ??= empty([group.Size, numLocal, .. part.shape[1..]], part.dtype, part.device).MoveToOuterDisposeScope();
            output_pto.narrow(1, first, count).copy_(part.view([group.Size, count, .. part.shape[1..]]));
            gathered_TH?.view([group.Size, numLocal, .. x_tH.shape[1..]]).narrow(1, first, count).copy_(rows.view([group.Size, count, .. x_tH.shape[1..]]));
        });
        if (output_pto is null) return product(x_tH).MoveToOuterDisposeScope();
        return output_pto.view([group.Size * numLocal, .. output_pto.shape[2..]]).MoveToOuterDisposeScope();
    }

    /// <summary>
    /// Gathers chunk after chunk, one ahead of the body, which runs in a scope of its own; rows are those of rank 0, then of rank 1, …
    /// </summary>
    private void GatherChunks(Tensor x_tH, Action<long, long, Tensor> body)
    {
        using var input_tH = x_tH.contiguous();
        var coming = new Queue<(long First, long Count, Tensor Rows, CollectiveWork Work)>(2);
        for (var chunk = 0; chunk < numChunks; chunk++)
        {
            var (first, count) = RowsOf(chunk, input_tH.shape[0]);
            if (count == 0) continue;
            using var own = input_tH.narrow(0, first, count);
            var rows = empty([group.Size * count, .. input_tH.shape[1..]], input_tH.dtype, input_tH.device);
            coming.Enqueue((first, count, rows, group.AllGather(rows, own)));
            if (coming.Count > 1) Use(coming.Dequeue());
        }
        while (coming.TryDequeue(out var last)) Use(last);

        void Use((long First, long Count, Tensor Rows, CollectiveWork Work) part)
        {
            part.Work.Wait();
            using (part.Rows)
            using (NewDisposeScope()) body(part.First, part.Count, part.Rows);
        }
    }

    /// <summary>The rows [first, first + count) of every rank's tokens, rank after rank: [tp · count, …].</summary>
    private Tensor SelectRows(Tensor x_TH, long first, long count)
    {
        var byRank = x_TH.view([group.Size, x_TH.shape[0] / group.Size, .. x_TH.shape[1..]]).narrow(1, first, count);
        return byRank.reshape([group.Size * count, .. x_TH.shape[1..]]);
    }

    private (long First, long Count) RowsOf(int chunk, long numLocal)
    {
        var first = numLocal * chunk / numChunks;
        return (first, numLocal * (chunk + 1) / numChunks - first);
    }

    private long CheckedLocalRows(long numRows) => numRows % group.Size == 0
        ? numRows / group.Size
        : throw new InvalidOperationException($"Sequence parallelism splits the row evenly: {numRows} tokens do not divide by tp = {group.Size}.");
}
