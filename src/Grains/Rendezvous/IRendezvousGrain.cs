using Megatron.Compute.Training;

namespace Megatron.Grains.Rendezvous;

/// <summary>
/// Where the ranks of one attempt find one another, key = <see cref="KeyOf"/>. The job grain opens it before the ranks start and closes it when the
/// attempt is over: a rank of an older attempt meets nobody. Nothing is stored: it lives on the silo of rank 0, without which there is no attempt.
/// </summary>
public interface IRendezvousGrain : IGrainWithStringKey
{
    /// <summary>Key of an attempt's grain.</summary>
    /// <param name="device">Key of the device of rank 0, <c>node/localRank</c>: it says where the grain lives.</param>
    static string KeyOf(AttemptId attempt, string device) => FormattableString.Invariant($"{attempt.JobId}/{attempt.Attempt}/{device}");

    /// <summary>Called by the job grain, once: a silo in the place of one that was lost knows nothing, and the ranks that wait there fail.</summary>
    /// <param name="jobId">The job, whose older attempts are over.</param>
    [ResponseTimeout("00:00:05")]
    Task Open(string jobId);

    /// <summary>Called by the job grain: every call from now on is refused, and who waits is released.</summary>
    [ResponseTimeout("00:00:05")]
    Task Close();

    /// <summary>Called by ranks, as <c>IRendezvousStore.Set</c>.</summary>
    [ResponseTimeout("00:00:05")]
    Task Set(string key, [Immutable] byte[] value);

    /// <summary>Called by ranks: the value, or null when nobody set it within <paramref name="wait"/>; the caller repeats.</summary>
    [ResponseTimeout("00:00:05")]
    Task<byte[]?> Get(string key, TimeSpan wait);

    /// <summary>Called by ranks, as <c>IRendezvousStore.Add</c>.</summary>
    [ResponseTimeout("00:00:05")]
    Task<long> Add(string key, long amount);

    /// <summary>Called by ranks, as <c>IRendezvousStore.CompareSet</c>.</summary>
    [ResponseTimeout("00:00:05")]
    Task<bool> CompareSet(string key, [Immutable] byte[]? expected, [Immutable] byte[] desired);

    /// <summary>Called by ranks, as <c>IRendezvousStore.Keys</c>.</summary>
    [ResponseTimeout("00:00:05")]
    Task<IReadOnlyList<string>> Keys(string prefix);
}

/// <summary>The attempt is not open here: it is over, or the grain has lost what it knew.</summary>
[GenerateSerializer]
public sealed class RendezvousClosedException : Exception
{
    public RendezvousClosedException(string message) : base(message) { }
}
