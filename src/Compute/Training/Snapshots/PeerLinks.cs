using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Training.Snapshots;

/// <summary>
/// One rank's ways to the ranks on other nodes with which it exchanges copies: a group of two for each, whose transfers run beside the training
/// step. CPU tensors.
/// </summary>
internal sealed class PeerLinks : IDisposable
{
    private readonly SortedDictionary<int, ProcessGroup> groups = [];
    private readonly int? partner;

    /// <summary>Ranks whose copies come here, ascending.</summary>
    public IReadOnlyList<int> Senders { get; }

    private PeerLinks(int? partner, IReadOnlyList<int> senders) => (this.partner, Senders) = (partner, senders);

    /// <summary>Global rank that gets this rank's copies; null when all ranks are on one node.</summary>
    public int? Partner => partner;

    /// <summary>How long the rank's thread has waited for peers here so far.</summary>
    public TimeSpan BlockedTime => groups.Values.Aggregate(TimeSpan.Zero, (total, group) => total + group.BlockedTime);

    /// <summary>Opens the ways of a rank; entered by all ranks of the attempt.</summary>
    /// <param name="partners">By rank: who gets its copies, the rank itself when nobody does; empty: nobody gets any.</param>
    /// <param name="factory">Makes groups of CPU tensors.</param>
    /// <exception cref="RankFaultException">A peer did not come in time.</exception>
    public static PeerLinks Open(IReadOnlyList<int> partners, int rank, Func<IProcessGroupFactory> factory)
    {
        var links = new PeerLinks(
            partners.Count > 0 && partners[rank] != rank ? partners[rank] : null, [.. Enumerable.Range(0, partners.Count).Where(from => from != rank && partners[from] == rank)]);
        // In one order of pairs on all ranks, so that no ring of ranks waits for itself.
        var pairs = links.Senders.Append(links.partner ?? rank).Where(peer => peer != rank).Distinct().Select(peer => (Low: Math.Min(rank, peer), High: Math.Max(rank, peer))).Order().ToList();
        if (pairs.Count == 0) return links;
        try
        {
            var backend = factory();
            foreach (var (low, high) in pairs) links.groups[low == rank ? high : low] = backend.Create("snapshot", rank, [low, high]);
            return links;
        }
        catch
        {
            links.Dispose();
            throw;
        }
    }

    /// <summary>Starts to send a tensor to the partner and to receive those of the senders; a tensor without elements is not sent.</summary>
    /// <param name="own">What the partner gets.</param>
    /// <param name="rooms">Where those of <see cref="Senders"/> go, in their order.</param>
    /// <returns>Each is to be waited for.</returns>
    public IReadOnlyList<CollectiveWork> Exchange(Tensor own, IReadOnlyList<Tensor> rooms)
    {
        var works = new List<CollectiveWork>();
        for (var i = 0; i < rooms.Count; i++)
            if (rooms[i].numel() > 0) works.Add(groups[Senders[i]].Receive(rooms[i], PeerIn(groups[Senders[i]])));
        if (partner is { } peer && own.numel() > 0) works.Add(groups[peer].Send(own, PeerIn(groups[peer])));
        return works;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var group in groups.Values) group.Dispose();
    }

    private static int PeerIn(ProcessGroup pair) => 1 - pair.Rank;
}
