namespace Megatron.Grains.Cluster;

/// <summary>
/// Where the consoles of a launch without Redis (NNODES) meet after their job has ended, one grain with the key <see cref="Key"/>. The grains of
/// such a cluster live in the silos of the consoles themselves, so nobody may leave before everybody has seen the end.
/// </summary>
public interface INodeBarrier : IGrainWithStringKey
{
    /// <summary>The only key.</summary>
    const string Key = "nodes";

    /// <summary>
    /// Called by node 0 before it submits, so that the grain lives in its silo, which leaves last.
    /// </summary>
    [ResponseTimeout("00:00:05")]
    Task Open();

    /// <summary>Called by each console that has seen the end, again and again; returns how many have.</summary>
    [ResponseTimeout("00:00:05")]
    Task<int> Arrive(int nodeRank);
}
