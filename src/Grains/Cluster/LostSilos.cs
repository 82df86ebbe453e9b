using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Cluster;

/// <summary>
/// The second signal of a lost silo, beside the probes of the membership, which need two seconds: a rank that loses a connection asks for a look at the
/// other silos, and one whose machine refuses connections is declared dead at once. A silo that is silent is left to the probes.
/// </summary>
internal sealed class LostSilos
{
    // The connections of a killed process do not all close in the same millisecond.
    private const int NumLooks = 5;
    private static readonly TimeSpan betweenLooks = TimeSpan.FromMilliseconds(50);

    private readonly IClusterMembershipService membership;
    private readonly ILocalSiloDetails local;
    private readonly ISiloProbe probe;
    private readonly ControlClock clock;
    private readonly ILogger<LostSilos> logger;

    public LostSilos(IClusterMembershipService membership, ILocalSiloDetails local, ISiloProbe probe, ControlClock clock, ILogger<LostSilos> logger)
    {
        this.membership = membership;
        this.local = local;
        this.probe = probe;
        this.clock = clock;
        this.logger = logger;
    }

    /// <summary>Looks at the other silos, a few times, until one is gone.</summary>
    public async Task LookAsync()
    {
        for (int look = 0; look < NumLooks; look++)
        {
            var others = membership.CurrentSnapshot.Members.Values.Where(member => member.Status is SiloStatus.Active && !member.SiloAddress.Equals(local.SiloAddress));
            bool[] gone = await Task.WhenAll(others.Select(member => BuryAsync(member.SiloAddress)));
            if (gone.Contains(true)) return;
            await Task.Delay(betweenLooks, clock.Time);
        }
    }

    private async Task<bool> BuryAsync(SiloAddress silo)
    {
        if (!await probe.IsGoneAsync(silo.Endpoint)) return false;
        GrainLog.SiloGone(logger, silo.ToParsableString());
        return await membership.TryKill(silo);
    }
}
