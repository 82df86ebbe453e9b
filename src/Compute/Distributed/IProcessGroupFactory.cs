namespace Megatron.Compute.Distributed;

/// <summary>
/// Opens the process groups of one backend for one rank. <see cref="ParallelState.Create"/> calls it once for every group of two or more
/// members that the rank belongs to, on the rank's thread and on all ranks in the same order of kinds.
/// </summary>
public interface IProcessGroupFactory
{
    /// <summary>Opens this rank's end of a group; may block until the other members do the same.</summary>
    /// <param name="name">Kind of the group, e.g. <c>tp</c>; name and members together are unique in the run.</param>
    /// <param name="globalRank">The calling rank, one of <paramref name="members"/>.</param>
    /// <param name="members">Global ranks, ascending.</param>
    /// <exception cref="RankFaultException">A member did not come in time.</exception>
    ProcessGroup Create(string name, int globalRank, IReadOnlyList<int> members);

    /// <summary>
    /// Aborts every group opened here and releases whoever waits in <see cref="Create"/>; it opens none any more. Any thread may call it, any
    /// number of times.
    /// </summary>
    void Abort(string reason);
}
