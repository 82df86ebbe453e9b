namespace Megatron.Grains.Cluster;

/// <summary>
/// The cluster as its members see it, one grain with the key <see cref="Key"/>: hears of every change from each silo, tells the jobs and the
/// device pool, and answers clients.
/// </summary>
public interface IMembershipGrain : IGrainWithStringKey
{
    /// <summary>The only key.</summary>
    const string Key = "cluster";

    /// <summary>For clients: silos, their devices and who uses them.</summary>
    [ResponseTimeout("00:00:05")]
    Task<ClusterStatus> GetStatus();

    /// <summary>
    /// Called by every silo when its view of the membership changes, and once at its start. Views that are not newer than the newest known change
    /// nothing; a newer one goes to every living job and to the device pool.
    /// </summary>
    [ResponseTimeout("00:00:01")]
    Task OnView([Immutable] MembershipView view);

    /// <summary>Called by a silo that was asked to end, before it leaves: no rank is placed on it any more, those on it save and move.</summary>
    [ResponseTimeout("00:00:05")]
    Task OnSiloLeaving(string silo);
}

/// <summary>The silos that take part, by the text form of their addresses, generation included: a restarted silo is another one.</summary>
/// <param name="Version">Grows with every change of the membership table.</param>
/// <param name="Active">Silos that take part.</param>
[GenerateSerializer, Immutable]
public sealed record MembershipView([property: Id(0)] long Version, [property: Id(1)] IReadOnlyList<string> Active);

/// <summary>What a client sees of the cluster.</summary>
[GenerateSerializer, Immutable]
public sealed record ClusterStatus([property: Id(0)] long MembershipVersion, [property: Id(1)] IReadOnlyList<SiloSummary> Silos);

/// <summary>One silo of the cluster.</summary>
/// <param name="Address">IP address, port and generation.</param>
/// <param name="Status">Orleans' word: Joining, Active, ShuttingDown, Dead.</param>
/// <param name="Node">Name of its node; empty while it is not known.</param>
/// <param name="Devices">Devices that it owns and the job that has each reserved.</param>
[GenerateSerializer, Immutable]
public sealed record SiloSummary(
    [property: Id(0)] string Address, [property: Id(1)] string Status, [property: Id(2)] string Node, [property: Id(3)] IReadOnlyList<DeviceSummary> Devices);

/// <summary>One device.</summary>
/// <param name="JobId">The job that has it reserved; null when it is free.</param>
[GenerateSerializer, Immutable]
public sealed record DeviceSummary([property: Id(0)] int Index, [property: Id(1)] string? JobId);
