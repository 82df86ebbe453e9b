using System.Collections.Immutable;
using System.Globalization;
using Megatron.Grains.Jobs;

namespace Megatron.Grains.Cluster;

/// <summary>A job's devices.</summary>
[GenerateSerializer, Immutable]
public sealed record DeviceReservation([property: Id(0)] string JobId, [property: Id(1)] int Attempt, [property: Id(2)] ImmutableArray<DeviceId> Devices);

/// <summary>Who has which devices and who waits. Durable; changed by <see cref="DevicePool"/> only.</summary>
[GenerateSerializer, Immutable]
public sealed record DevicePoolState
{
    /// <summary>Everything is free.</summary>
    public static DevicePoolState Empty { get; } = new();

    [Id(0)] public ImmutableArray<DeviceReservation> Reservations { get; init; } = [];

    /// <summary>Jobs that wait, the first one first.</summary>
    [Id(1)] public ImmutableArray<string> Queue { get; init; } = [];
}

/// <summary>What a job asks of the pool.</summary>
/// <param name="Attempt">The attempt that will run on the devices; an older one than the job has reserved for is refused.</param>
/// <param name="Excluded">Devices that the job knows to be lost or stuck, as long as the silo named owns them.</param>
[GenerateSerializer, Immutable]
public sealed record DeviceRequest(
    [property: Id(0)] JobSpec Spec, [property: Id(1)] int Attempt, [property: Id(2)] ImmutableArray<ClusterDevice> Excluded);

/// <summary>The pool's answer.</summary>
/// <param name="Plan">Null when nothing was reserved.</param>
/// <param name="IsWaiting">True when the job stands in the queue and is told when it is worth asking again.</param>
[GenerateSerializer, Immutable]
public sealed record DeviceAnswer([property: Id(0)] LaunchPlan? Plan, [property: Id(1)] bool IsWaiting, [property: Id(2)] string Reason);

/// <summary>
/// Gang reservation as pure functions: a job gets all the devices of a plan or none. Waiting jobs are served in order; a job that had devices and
/// lost some goes before those that have not started.
/// </summary>
public static class DevicePool
{
    /// <summary>Reserves devices for an attempt; what the job held before is given back first.</summary>
    /// <param name="devices">Devices of active silos.</param>
    /// <param name="machines">As for <see cref="CoreShares.Divide"/>.</param>
    public static (DevicePoolState State, DeviceAnswer Answer) Reserve(
        DevicePoolState state, DeviceRequest request, IReadOnlyCollection<ClusterDevice> devices, IReadOnlyDictionary<string, HostMachine> machines)
    {
        string jobId = request.Spec.JobId;
        var held = state.Reservations.FirstOrDefault(reservation => reservation.JobId == jobId);
        if (held is not null && held.Attempt > request.Attempt)
            return (state, new DeviceAnswer(null, false, string.Create(CultureInfo.InvariantCulture, $"attempt {request.Attempt} is stale, attempt {held.Attempt} has reserved")));
        var others = state.Reservations.RemoveAll(reservation => reservation.JobId == jobId);
        int ahead = request.Attempt > 1 ? 0 : Math.Max(0, state.Queue.IndexOf(jobId) is var place && place >= 0 ? place : state.Queue.Length);
        if (ahead > 0 && request.Spec.IsElastic)
            return Wait(state, request, string.Create(CultureInfo.InvariantCulture, $"{ahead} {(ahead == 1 ? "job is" : "jobs are")} ahead in the queue"));

        var taken = others.SelectMany(reservation => reservation.Devices).ToHashSet();
        var usable = devices.Where(device => !taken.Contains(device.Id) && !request.Excluded.Contains(device)).ToList();
        var (plan, reason) = RecoveryPlanner.Plan(request.Spec, usable);
        if (plan is null)
            return request.Spec.IsElastic ? Wait(state with { Reservations = others }, request, reason) : (Release(state, jobId), new DeviceAnswer(null, false, reason));
        plan = CoreShares.Divide(plan, devices.Where(device => taken.Contains(device.Id)).Select(device => device.Silo), machines);
        var reservation = new DeviceReservation(jobId, request.Attempt, [.. plan.Ranks.Select(rank => rank.Device)]);
        return (new DevicePoolState { Reservations = others.Add(reservation), Queue = state.Queue.Remove(jobId) }, new DeviceAnswer(plan, false, reason));
    }

    /// <summary>The job needs no devices any more.</summary>
    public static DevicePoolState Release(DevicePoolState state, string jobId) => new()
    {
        Reservations = state.Reservations.RemoveAll(reservation => reservation.JobId == jobId),
        Queue = state.Queue.Remove(jobId),
    };

    private static (DevicePoolState, DeviceAnswer) Wait(DevicePoolState state, DeviceRequest request, string reason)
    {
        string jobId = request.Spec.JobId;
        if (state.Queue.Contains(jobId))
            return (state, new DeviceAnswer(null, true, reason));
        var queue = request.Attempt > 1 ? state.Queue.Insert(0, jobId) : state.Queue.Add(jobId);
        return (state with { Queue = queue }, new DeviceAnswer(null, true, reason));
    }
}
