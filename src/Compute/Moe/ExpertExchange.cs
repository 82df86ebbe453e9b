using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Moe;

/// <summary>
/// Carries rows to the ranks that hold their experts and back: an all-to-all over the expert-parallel group (arXiv 2006.16668, section 3.2), then,
/// where each expert's matrices are split, an exchange over the expert-tensor-parallel group that gathers all its rows on each of those
/// ranks; on the way back the partial results are summed there first. Experts lie in equal, consecutive parts over the expert-parallel group.
/// </summary>
/// <remarks>
/// Not a sort by expert: rows enter sorted by expert, and each rank's leave as they came. Everything is the identity in groups of one.
/// Bytes sent by a rank with rows of B bytes, R of which are of experts elsewhere, Q arrive over the expert-parallel group (P of them from
/// elsewhere) and G − Q from the other expert-tensor-parallel ranks: <see cref="StartSend"/> with <see cref="FinishSend"/> (R + (etp − 1)·Q)·B, <see cref="Return"/> (P + (G − Q))·B,
/// <see cref="Plan"/> 8·E·((ep − 1)/ep + etp − 1), E/ep of the E experts being here. Shape letters: E experts, e = E / ep experts of this rank.
/// </remarks>
public sealed class ExpertExchange
{
    private readonly ProcessGroup expertParallel;
    private readonly ProcessGroup expertTensorParallel;

    /// <summary>E.</summary>
    public int NumExperts { get; }

    /// <summary>e.</summary>
    public int NumLocalExperts { get; }

    /// <param name="expertParallel">Ranks with different experts.</param>
    /// <param name="expertTensorParallel">Ranks with different parts of the same experts; each brings tokens of its own.</param>
    /// <param name="numExperts">E, a multiple of the first group's size.</param>
    public ExpertExchange(ProcessGroup expertParallel, ProcessGroup expertTensorParallel, int numExperts)
    {
        (this.expertParallel, this.expertTensorParallel, NumExperts) = (expertParallel, expertTensorParallel, numExperts);
        NumLocalExperts = numExperts / expertParallel.Size;
    }

    /// <summary>True when all experts are on this rank: nothing travels, and the host need not know how many rows they have.</summary>
    private bool IsLocal => expertParallel.Size == 1 && expertTensorParallel.Size == 1;

    /// <summary>
    /// Tells the ranks how many rows will come. Waits for the device, because the numbers are needed on the host, unless all experts are here.
    /// </summary>
    /// <param name="rowsPerExpert_E">[E] int64 rows of this rank for each expert.</param>
    /// <returns>
    /// [E + etp·ep·e] int64 on the CPU, for <see cref="ExchangePlan"/>: a tensor, so that a layer can keep it; the argument when all experts are here.
    /// </returns>
    public Tensor Plan(Tensor rowsPerExpert_E)
    {
        if (IsLocal) return rowsPerExpert_E.alias();
        using var scope = NewDisposeScope();
        var received = rowsPerExpert_E;
        if (expertParallel.Size > 1)
        {
            var ones = Enumerable.Repeat(1L, expertParallel.Size).ToArray();
            received = empty([expertParallel.Size, NumLocalExperts], int64, rowsPerExpert_E.device);
            using (expertParallel.AllToAll(received, rowsPerExpert_E.view(expertParallel.Size, NumLocalExperts), ones, ones)) { }
        }
        if (expertTensorParallel.Size > 1)
        {
            var gathered = empty([expertTensorParallel.Size, .. received.shape], int64, rowsPerExpert_E.device);
            using (expertTensorParallel.AllGather(gathered, received)) { }
            received = gathered;
        }
        return cat([rowsPerExpert_E, received.reshape(-1)], 0).cpu().MoveToOuterDisposeScope();
    }

    /// <summary>Reads a kept plan.</summary>
    public ExchangePlan Read(Tensor plan) => IsLocal
        ? ExchangePlan.Nothing
        : new ExchangePlan(plan.data<long>().ToArray(), NumExperts, expertParallel.Size, expertTensorParallel.Size, expertTensorParallel.Rank);

    /// <summary>Borders of the rows that <see cref="FinishSend"/> gives.</summary>
    /// <param name="rowsPerExpert_E">As given to <see cref="Plan"/>.</param>
    /// <returns>[e] int32 on the same device: the row after the last of each expert.</returns>
    public Tensor Ends(Tensor rowsPerExpert_E, ExchangePlan plan)
    {
        using var scope = NewDisposeScope();
        var rows_e = IsLocal ? rowsPerExpert_E : tensor(plan.RowsPerExpert, int64, rowsPerExpert_E.device);
        return rows_e.cumsum(0, int32).MoveToOuterDisposeScope();
    }

    /// <summary>
    /// Starts to send rows of this rank, sorted by expert, to the ranks of their experts: they travel over the expert-parallel group while the caller
    /// does something else.
    /// </summary>
    /// <param name="rows">[R, …] contiguous.</param>
    public RowTransfer StartSend(Tensor rows, ExchangePlan plan) => Start(expertParallel, rows, plan.ArrivingFrom, plan.SentTo);

    /// <summary>Rows of this rank's experts, sorted by expert and inside an expert by where they came from; waits for them.</summary>
    /// <returns>[Σ <see cref="ExchangePlan.RowsPerExpert"/>, …], an alias when nothing moves.</returns>
    public Tensor FinishSend(RowTransfer started, ExchangePlan plan)
    {
        using var scope = NewDisposeScope();
        using (started.Work) { }
        var arrived = started.Rows.alias();
        if (expertTensorParallel.Size > 1)
        {
            var copies = cat([.. Enumerable.Repeat(arrived, expertTensorParallel.Size)], 0);
            arrived = Transfer(expertTensorParallel, copies, plan.ArrivedAt, plan.CopiesSent);
        }
        return Reorder(arrived, plan.ChunksByOrigin, plan.OriginOfExpertOrder).MoveToOuterDisposeScope();
    }

    /// <summary>The way back: results of this rank's experts, partial where their matrices are split, to sums in the rows that <see cref="StartSend"/> took.</summary>
    /// <param name="rows">In the order of <see cref="FinishSend"/>.</param>
    public Tensor Return(Tensor rows, ExchangePlan plan)
    {
        using var scope = NewDisposeScope();
        var leaving = Reorder(rows, plan.ChunksByExpert, plan.ExpertOfOriginOrder);
        if (expertTensorParallel.Size > 1)
        {
            var parts = Transfer(expertTensorParallel, leaving, plan.CopiesSent, plan.ArrivedAt);
            // Summed here and in rank order: one rounding, and the same bits in every run.
            leaving = parts.view([expertTensorParallel.Size, plan.ArrivedAt[expertTensorParallel.Rank], .. rows.shape[1..]]).sum(dim: 0);
        }
        return Transfer(expertParallel, leaving, plan.SentTo, plan.ArrivingFrom).MoveToOuterDisposeScope();
    }

    private static Tensor Transfer(ProcessGroup group, Tensor rows, long[] outputSplits, long[] inputSplits)
    {
        var started = Start(group, rows, outputSplits, inputSplits);
        using (started.Work) return started.Rows;
    }

    private static RowTransfer Start(ProcessGroup group, Tensor rows, long[] outputSplits, long[] inputSplits)
    {
        if (group.Size == 1) return new RowTransfer(rows.alias(), CollectiveWork.Completed);
        var output = empty([outputSplits.Sum(), .. rows.shape[1..]], rows.dtype, rows.device);
        return new RowTransfer(output, group.AllToAll(output, rows.contiguous(), outputSplits, inputSplits));
    }

    /// <summary>The chunks of <paramref name="rows"/>, of the given lengths, in another order.</summary>
    private static Tensor Reorder(Tensor rows, long[] lengths, int[] order)
    {
        if (lengths.Count(length => length > 0) <= 1 || order.Zip(order.Skip(1)).All(pair => pair.First < pair.Second)) return rows.alias();
        var starts = new long[lengths.Length];
        for (var i = 1; i < starts.Length; i++) starts[i] = starts[i - 1] + lengths[i - 1];
        return cat([.. order.Where(chunk => lengths[chunk] > 0).Select(chunk => rows.narrow(0, starts[chunk], lengths[chunk]))], 0);
    }
}

/// <summary>Rows on their way.</summary>
/// <param name="Rows">Where they will be; not to be read before <paramref name="Work"/> is waited for.</param>
/// <param name="Work">The started collective; disposing waits.</param>
public readonly record struct RowTransfer(Tensor Rows, CollectiveWork Work);
