using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Microsoft.Extensions.Logging;

namespace Megatron.Grains.Snapshots;

/// <summary>
/// Between two attempts: asks the silos that are left for the job's snapshots and has the newest whole one written as a checkpoint, from which the
/// next attempt starts as from any other (ADR 8).
/// </summary>
internal sealed class SnapshotRecovery
{
    // A silo that is busy is no silo without snapshots.
    private const int NumQuestions = 5;

    private readonly IGrainFactory grains;
    private readonly ClusterDevices devices;
    private readonly ILogger logger;

    public SnapshotRecovery(IGrainFactory grains, ClusterDevices devices, ILogger logger)
    {
        this.grains = grains;
        this.devices = devices;
        this.logger = logger;
    }

    /// <summary>Looks for a snapshot that is newer than the job's checkpoint and writes it. Lasts as long as the disk takes; throws nothing.</summary>
    /// <returns>The checkpoint, or null and why there is none; both null when no silo holds a newer snapshot.</returns>
    public async Task<(CommittedCheckpoint? Checkpoint, string? Problem)> RunAsync(JobState state)
    {
        // Silos whose ranks did not end are about to restart.
        var stuck = state.Excluded.Select(device => device.Silo).ToHashSet(StringComparer.Ordinal);
        var silos = Silos().Where(silo => !stuck.Contains(silo.Address)).ToList();
        var answers = await Task.WhenAll(silos.Select(silo => AskAsync(silo.Node, silo.Address, state.AttemptId.JobId)));
        List<SnapshotHolder> holders = [.. answers.OfType<SnapshotHolder>()];
        // A job whose grain has moved knows from the ledger what it had heard.
        long reported = Math.Max(state.LastIteration, await JobLedger.ReadLastStepAsync(state.Spec?.OutputFolder ?? ""));
        var (plan, problem) = SnapshotPlanner.Plan(holders, state.Checkpoint?.Iteration ?? 0, reported);
        if (plan is null)
            return (null, problem ?? (holders.Count == answers.Length ? null : "not every silo said which snapshots it holds"));
        try
        {
            return (await WriteAsync(plan, state.AttemptId with { Attempt = state.Attempt + 1 }), null);
        }
        catch (Exception fault)
        {
            // Whatever it was, the job goes on from what is on disk.
            GrainLog.CallFailed(logger, "write a snapshot", fault.Message);
            return (null, $"{plan.Source} could not be written: {fault.Message}");
        }
    }

    /// <summary>Lets all silos free what attempts before <paramref name="attempt"/> left; throws nothing.</summary>
    public Task DiscardAsync(string jobId, int attempt) =>
        Task.WhenAll(Silos().Select(silo => GrainCalls.TryAsync(HolderOf(silo.Node).Discard(jobId, attempt), logger, "discard snapshots")));

    private IEnumerable<(string Address, NodeIdentity Node)> Silos()
    {
        var active = devices.View().Active;
        foreach (var (address, _, node) in devices.Silos())
        {
            if (active.Contains(address) && node is { Devices.Count: > 0 })
                yield return (address, node);
        }
    }

    // Null when the silo did not answer.
    private async Task<SnapshotHolder?> AskAsync(NodeIdentity node, string address, string jobId)
    {
        for (int i = 0; i < NumQuestions && devices.View().Active.Contains(address); i++)
        {
            try
            {
                return new SnapshotHolder(KeyOf(node), node.Name, await HolderOf(node).Find(jobId));
            }
            catch (Exception fault)
            {
                GrainLog.CallFailed(logger, "find snapshots", fault.Message);
            }
        }
        return null;
    }

    private async Task<CommittedCheckpoint> WriteAsync(SnapshotPlan plan, AttemptId next)
    {
        var orders = plan.Writers.Select(writer => (Holder: grains.GetGrain<ISnapshotGrain>(writer.GrainKey), Order: new SnapshotOrder(next, plan.Attempt, plan.Iteration, writer.Ranks))).ToList();
        var receipts = await Task.WhenAll(orders.Select(item => item.Holder.Write(item.Order)));
        string folder = await orders[0].Holder.Commit(orders[0].Order, [.. receipts.SelectMany(part => part)]);
        return new CommittedCheckpoint(plan.Iteration, folder) { Source = plan.Source };
    }

    private ISnapshotGrain HolderOf(NodeIdentity node) => grains.GetGrain<ISnapshotGrain>(KeyOf(node));

    private static string KeyOf(NodeIdentity node) => node.DeviceIds.First().GrainKey;
}
