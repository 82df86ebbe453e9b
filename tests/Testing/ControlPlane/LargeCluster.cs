using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Megatron.Compute.Training;
using Megatron.Grains;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;

namespace Megatron.Testing.ControlPlane;

/// <summary>How long a large job took to start and to come back.</summary>
/// <param name="Start">From the submission until all ranks run.</param>
/// <param name="Recovery">From the loss of a node until all ranks of the next attempt run.</param>
/// <param name="Plan">What the job said of its new plan.</param>
public sealed record LossTimes(int NumRanks, TimeSpan Start, TimeSpan Recovery, int NumRanksAfter, string Plan)
{
    /// <inheritdoc/>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{NumRanks} ranks start in {Start.TotalSeconds:F2} s; a node is lost, {NumRanksAfter} ranks run after {Recovery.TotalSeconds:F2} s");
}

/// <summary>One real silo behind which <see cref="FakeNodes"/> live, with a fake worker for each device: the arithmetic and the messages of a large cluster.</summary>
public static class LargeCluster
{
    /// <summary>A job with one replica on each node starts, loses a node and goes on with one replica fewer.</summary>
    public static async Task<LossTimes> MeasureLossAsync(int numNodes, int devicesPerNode, CancellationToken cancellation)
    {
        var ranks = new ConcurrentDictionary<int, StartRank>();
        using var host = Build(numNodes, devicesPerNode, (worker, command) => Answer(ranks, worker, command));
        await host.StartAsync(cancellation);
        var grains = host.Services.GetRequiredService<IGrainFactory>();
        var job = grains.GetGrain<IJobGrain>("large");
        int numRanks = numNodes * devicesPerNode;
        long submitted = Stopwatch.GetTimestamp();
        await job.Submit(new JobSpec
        {
            JobId = "large",
            Name = "large",
            ConfigJson = "{}",
            WorldSize = numRanks,
            OutputFolder = "/nowhere",
            MaxRestarts = 1,
            IsElastic = true,
            Layout = new JobLayout { TensorSize = devicesPerNode, NumMicroBatches = numNodes * (numNodes - 1) },
        });
        await using var events = job.Watch(1, cancellation).GetAsyncEnumerator(cancellation);
        await WaitForRunningAsync(events, 1);
        var start = Stopwatch.GetElapsedTime(submitted);
        long lost = Stopwatch.GetTimestamp();
        await grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).OnView(host.Services.GetRequiredService<FakeNodes>().Lose(numNodes / 2));
        await WaitForRunningAsync(events, 2);
        var recovery = Stopwatch.GetElapsedTime(lost);
        var status = await job.GetStatus();
        foreach (var (index, rank) in ranks.Where(pair => pair.Value.Attempt.Attempt == status.Attempt))
            Worker(host, index).Report(new RankFinished(rank.Attempt, rank.Rank, 1, Completed: true));
        while (await events.MoveNextAsync()) { }
        await host.StopAsync(cancellation);
        return new LossTimes(numRanks, start, recovery, status.Plan?.WorldSize ?? 0, status.Reason);
    }

    private static FakeRankWorker Worker(IHost host, int index) => (FakeRankWorker)host.Services.GetRequiredService<Grains.Ranks.RankWorkerRegistry>().Get(index);

    private static IEnumerable<RankReport> Answer(ConcurrentDictionary<int, StartRank> ranks, FakeRankWorker worker, RankCommand command)
    {
        if (command is StartRank start)
        {
            ranks[worker.LocalRank] = start;
            yield return FakeRankWorker.Started(start);
        }
        else if (command is AbortRank abort && ranks.TryGetValue(worker.LocalRank, out var running) && running.Attempt == abort.Attempt)
        {
            yield return new RankFaulted(abort.Attempt, running.Rank, abort.Reason, IsUserError: false, "");
        }
    }

    private static async Task WaitForRunningAsync(IAsyncEnumerator<JobEvent> events, int attempt)
    {
        while (await events.MoveNextAsync())
        {
            if (events.Current is JobPhaseChanged { Phase: JobPhase.Running } running && running.Attempt == attempt)
                return;
        }
        throw new InvalidOperationException(string.Create(CultureInfo.InvariantCulture, $"the job ended before attempt {attempt} ran"));
    }

    private static IHost Build(int numNodes, int devicesPerNode, Func<FakeRankWorker, RankCommand, IEnumerable<RankReport>> script)
    {
        var builder = Host.CreateEmptyApplicationBuilder(new HostApplicationBuilderSettings { DisableDefaults = true, ApplicationName = "large cluster" });
        builder.UseOrleans(silo =>
        {
            silo.UseLocalhostClustering(FreePort(), gatewayPort: 0, clusterId: Guid.NewGuid().ToString("N"));
            silo.AddMemoryGrainStorage(GrainServices.JobStorage);
            var all = Enumerable.Range(0, numNodes * devicesPerNode);
            silo.AddTrainingGrains(new NodeIdentity("all", all, new HostMachine("host", 1)), _ => index => new FakeRankWorker(index) { Script = script });
            silo.Services.AddSingleton(services => ActivatorUtilities.CreateInstance<FakeNodes>(services, numNodes, devicesPerNode));
            silo.Services.AddSingleton<ClusterDevices>(services => services.GetRequiredService<FakeNodes>());
        });
        return builder.Build();
    }

    private static int FreePort()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }
}
