using Orleans.Configuration;

namespace Megatron.Silo;

/// <summary>
/// How fast silos notice that another one is gone. All values of a profile belong together: a short probe without clamped bounds still takes
/// ten seconds to notice a frozen silo, because the probe timeout adapts.
/// </summary>
public sealed record MembershipProfile
{
    /// <summary>
    /// A killed silo is seen in about 1 s and a frozen one in less than 3 s; no false eviction was measured with every core busy.
    /// </summary>
    public static MembershipProfile Tight { get; } = new()
    {
        ProbeTimeout = TimeSpan.FromMilliseconds(650),
        MaxProbeTimeout = TimeSpan.FromMilliseconds(650),
        NumMissedProbes = 2,
        NumVotes = 2,
        TableRefresh = TimeSpan.FromSeconds(2),
        IAmAlive = TimeSpan.FromSeconds(2),
        MaxJoinTime = TimeSpan.FromSeconds(30),
    };

    /// <summary>For networks with pauses of a second: a frozen silo is seen in about 6.5 s.</summary>
    public static MembershipProfile Relaxed { get; } = Tight with
    {
        ProbeTimeout = TimeSpan.FromSeconds(1),
        MaxProbeTimeout = TimeSpan.FromSeconds(2),
        NumMissedProbes = 3,
        TableRefresh = TimeSpan.FromSeconds(5),
        IAmAlive = TimeSpan.FromSeconds(5),
        MaxJoinTime = TimeSpan.FromSeconds(60),
    };

    /// <summary>
    /// For a silo that is a cluster of its own. Nobody else watches it, so the only silo that could declare it dead is itself, when a busy machine makes
    /// its start slow: it never does. Its membership table changes twice in its life and is written and read at leisure.
    /// </summary>
    public static MembershipProfile Alone { get; } = Relaxed with
    {
        ProbeTimeout = TimeSpan.FromMinutes(1),
        MaxProbeTimeout = TimeSpan.FromMinutes(1),
        TableRefresh = TimeSpan.FromMinutes(1),
        IAmAlive = TimeSpan.FromMinutes(10),
        MaxJoinTime = TimeSpan.FromHours(1),
        EvictsSlowStarters = false,
    };

    /// <summary>Time between two probes, and the least that a probe may take.</summary>
    public required TimeSpan ProbeTimeout { get; init; }

    /// <summary>The most that a probe may take.</summary>
    public required TimeSpan MaxProbeTimeout { get; init; }

    /// <summary>Missed probes until a silo is suspected.</summary>
    public required int NumMissedProbes { get; init; }

    /// <summary>Silos that must suspect it; with two silos one is enough by itself.</summary>
    public required int NumVotes { get; init; }

    /// <summary>How often the membership table is read without a change being announced.</summary>
    public required TimeSpan TableRefresh { get; init; }

    /// <summary>How often a silo writes that it lives; three of them missed make its row stale after a cold start.</summary>
    public required TimeSpan IAmAlive { get; init; }

    /// <summary>How long a starting silo tries to reach the others.</summary>
    public required TimeSpan MaxJoinTime { get; init; }

    /// <summary>Whether a silo that has not joined within <see cref="MaxJoinTime"/> of its start is declared dead; any silo may do so, the slow one too.</summary>
    public bool EvictsSlowStarters { get; init; } = true;

    /// <summary>Writes the profile into the options of a silo.</summary>
    public void ApplyTo(ClusterMembershipOptions options)
    {
        options.ProbeTimeout = ProbeTimeout;
        options.MinProbeTimeout = ProbeTimeout;
        options.MaxProbeTimeout = MaxProbeTimeout;
        options.NumMissedProbesLimit = NumMissedProbes;
        options.NumVotesForDeathDeclaration = NumVotes;
        options.TableRefreshTimeout = TableRefresh;
        options.IAmAliveTablePublishTimeout = IAmAlive;
        options.MaxJoinAttemptTime = MaxJoinTime;
        options.EvictWhenMaxJoinAttemptTimeExceeded = EvictsSlowStarters;
        options.DefunctSiloExpiration = TimeSpan.FromMinutes(10);
        options.DefunctSiloCleanupPeriod = TimeSpan.FromMinutes(1);
    }
}
