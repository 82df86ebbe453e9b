namespace Megatron.Compute.Moe;

/// <summary>How many rows travel where in one micro-batch of one layer: the splits of the collectives of <see cref="ExpertExchange"/>. Pure.</summary>
/// <remarks>A chunk is the rows of one expert of this rank that came over one expert-tensor-parallel rank from one expert-parallel rank.</remarks>
public sealed class ExchangePlan
{
    /// <summary>[ep] rows of this rank for the experts of each expert-parallel rank.</summary>
    public long[] SentTo { get; }

    /// <summary>[ep] rows of each expert-parallel rank for the experts here.</summary>
    public long[] ArrivingFrom { get; }

    /// <summary>[etp] rows that arrive over the expert-parallel group at each expert-tensor-parallel rank.</summary>
    public long[] ArrivedAt { get; }

    /// <summary>[etp] rows of this rank for each expert-tensor-parallel rank: all that arrived here, for each.</summary>
    public long[] CopiesSent { get; }

    /// <summary>[e] rows of each expert of this rank.</summary>
    public long[] RowsPerExpert { get; }

    /// <summary>[etp·ep·e] lengths of the chunks in the order in which they arrive: by expert-tensor-parallel rank, expert-parallel rank, expert.</summary>
    internal long[] ChunksByOrigin { get; }

    /// <summary>[etp·ep·e] the same lengths by expert, expert-tensor-parallel rank, expert-parallel rank.</summary>
    internal long[] ChunksByExpert { get; }

    /// <summary>Place by origin of each chunk by expert.</summary>
    internal int[] OriginOfExpertOrder { get; }

    /// <summary>Place by expert of each chunk by origin.</summary>
    internal int[] ExpertOfOriginOrder { get; }

    /// <summary>For a rank with all experts: nothing travels, and nothing is known of the rows.</summary>
    internal static ExchangePlan Nothing { get; } = new([], numExperts: 0, ep: 1, etp: 1, etpRank: 0);

    /// <param name="counts">[E + etp·ep·e] of <see cref="ExpertExchange.Plan"/>.</param>
    /// <param name="etpRank">This rank in the expert-tensor-parallel group.</param>
    internal ExchangePlan(long[] counts, int numExperts, int ep, int etp, int etpRank)
    {
        var (local, sources) = (numExperts / ep, etp * ep);
        SentTo = [.. Enumerable.Range(0, ep).Select(rank => counts.AsSpan(rank * local, local).ToArray().Sum())];
        ChunksByOrigin = counts[numExperts..];
        OriginOfExpertOrder = new int[sources * local];
        ExpertOfOriginOrder = new int[sources * local];
        (ChunksByExpert, RowsPerExpert, ArrivedAt) = (new long[sources * local], new long[local], new long[etp]);
        for (var source = 0; source < sources; source++)
            for (var expert = 0; expert < local; expert++)
            {
                var (byOrigin, byExpert) = (source * local + expert, expert * sources + source);
                (OriginOfExpertOrder[byExpert], ExpertOfOriginOrder[byOrigin]) = (byOrigin, byExpert);
                ChunksByExpert[byExpert] = ChunksByOrigin[byOrigin];
                RowsPerExpert[expert] += ChunksByOrigin[byOrigin];
                ArrivedAt[source / ep] += ChunksByOrigin[byOrigin];
            }
        ArrivingFrom = [.. Enumerable.Range(0, ep).Select(rank => ChunksByOrigin.AsSpan((etpRank * ep + rank) * local, local).ToArray().Sum())];
        CopiesSent = [.. Enumerable.Repeat(ArrivedAt[etpRank], etp)];
    }
}
