using System.Collections.Concurrent;
using System.Collections.Immutable;
using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Megatron.Grains.Cluster;
using Megatron.Grains.Jobs;
using Megatron.Testing;
using Microsoft.Extensions.DependencyInjection;
using Orleans.Runtime.Placement;
using Orleans.TestingHost;

namespace Megatron.Grains.Tests;

/// <summary>
/// Real silos in this process with fake rank workers; silo n is node n. Grain state is kept outside the silos, as a Redis would. A silo started later
/// has the next number; a killed one leaves the membership at once (the time that takes is measured with real processes, elsewhere).
/// </summary>
public sealed class TrainingCluster : IAsyncDisposable
{
    /// <summary>Cores of the machine that all silos share.</summary>
    public const int NumCores = 8;

    /// <summary>As <see cref="JobTimings.LooksAfterLoss"/>, sooner.</summary>
    public static readonly ImmutableArray<TimeSpan> LooksAfterLoss = [TimeSpan.FromMilliseconds(300), TimeSpan.FromMilliseconds(600)];

    private readonly InProcessTestCluster cluster;
    private readonly ConcurrentDictionary<(string Node, int Index), FakeRankWorker> workers;
    private readonly ConcurrentDictionary<string, FakeSnapshotHolder> holders;

    private TrainingCluster(
        InProcessTestCluster cluster, ConcurrentDictionary<(string, int), FakeRankWorker> workers, ConcurrentDictionary<string, FakeSnapshotHolder> holders)
    {
        this.cluster = cluster;
        this.workers = workers;
        this.holders = holders;
    }

    /// <summary>The workers of node 0.</summary>
    public IReadOnlyDictionary<int, FakeRankWorker> Workers => workers.Where(pair => pair.Key.Node == "node0").ToDictionary(pair => pair.Key.Index, pair => pair.Value);

    public IGrainFactory Grains => cluster.Client;

    /// <summary>Address of the only silo.</summary>
    public string Silo => cluster.Silos.Single().SiloAddress.ToParsableString();

    /// <param name="loses">True for a call to a grain that does not arrive there.</param>
    public static async Task<TrainingCluster> StartAsync(
        int numDevices, Func<FakeRankWorker, RankCommand, IEnumerable<RankReport>>? script = null, int numSilos = 1, TimeProvider? clock = null,
        Func<IIncomingGrainCallContext, bool>? loses = null)
    {
        var workers = new ConcurrentDictionary<(string, int), FakeRankWorker>();
        var holders = new ConcurrentDictionary<string, FakeSnapshotHolder>();
        var storage = new SharedGrainStorage();
        int numStarted = -1;
        var builder = new InProcessTestClusterBuilder((short)numSilos);
        builder.ConfigureSilo((_, silo) =>
        {
            string node = $"node{Interlocked.Increment(ref numStarted)}";
            for (int index = 0; index < numDevices; index++)
                workers[(node, index)] = new FakeRankWorker(index) { Script = script };
            silo.Services.AddSingleton<ISnapshotHolder>(holders[node] = new FakeSnapshotHolder());
            silo.Services.AddKeyedSingleton<Orleans.Storage.IGrainStorage>(GrainServices.JobStorage, storage);
            // On a busy machine a fake rank may be slow to end; none of them hangs.
            silo.Services.AddSingleton(new JobTimings { Clearing = TimeSpan.FromMinutes(5), ClearingAtStart = TimeSpan.FromMinutes(5), LooksAfterLoss = LooksAfterLoss });
            if (loses is not null)
            {
                silo.AddIncomingGrainCallFilter(call => loses(call) ? throw new SiloUnavailableException("the call was lost with the silo that passed it on") : call.Invoke());
            }
            if (clock is not null)
                silo.Services.AddSingleton(new ControlClock(clock));
            silo.AddTrainingGrains(new NodeIdentity(node, Enumerable.Range(0, numDevices), new HostMachine("host", NumCores)), _ => index => workers[(node, index)]);
        });
        var cluster = builder.Build();
        await cluster.DeployAsync();
        return new TrainingCluster(cluster, workers, holders);
    }

    public IJobGrain Job(string id) => Grains.GetGrain<IJobGrain>(id);

    public FakeRankWorker Worker(int node, int index) => workers[($"node{node}", index)];

    /// <summary>The snapshots in the memory of a node's silo.</summary>
    public FakeSnapshotHolder Snapshots(int node) => holders[$"node{node}"];

    /// <summary>Address of the silo of a node.</summary>
    public async Task<string> SiloOfAsync(int node)
    {
        var status = await Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).GetStatus();
        return status.Silos.Single(silo => silo.Node == $"node{node}").Address;
    }

    /// <summary>Has the grain of a job live on the silo of a node; before anything else is asked of it.</summary>
    public Task PlaceJobAsync(string id, int node) => PlaceAsync(Job(id), node, () => Job(id).GetStatus());

    /// <summary>Has a grain live on the silo of a node.</summary>
    /// <param name="call">The first call to it.</param>
    public async Task PlaceAsync(IAddressable grain, int node, Func<Task> call)
    {
        var silo = SiloAddress.FromParsableString(await SiloOfAsync(node));
        RequestContext.Set(IPlacementDirector.PlacementHintKey, silo);
        await call();
        RequestContext.Remove(IPlacementDirector.PlacementHintKey);
        Assert.Equal(silo, await Grains.GetGrain<IManagementGrain>(0).GetActivationAddress(grain));
    }

    /// <summary>Starts another silo, with devices of its own.</summary>
    public Task AddSiloAsync() => cluster.StartAdditionalSiloAsync();

    /// <summary>Ends the silo of a node without asking its grains.</summary>
    public async Task KillSiloAsync(int node)
    {
        string address = await SiloOfAsync(node);
        await cluster.KillSiloAsync(cluster.Silos.Single(silo => silo.SiloAddress.ToParsableString() == address));
    }

    public static JobSpec Spec(string id, int worldSize = 1, int pipelineSize = 1, int maxRestarts = 0, bool isElastic = false) => new()
    {
        JobId = id,
        Name = id,
        ConfigJson = "{}",
        WorldSize = worldSize,
        PipelineSize = pipelineSize,
        OutputFolder = "/nowhere",
        MaxRestarts = maxRestarts,
        IsElastic = isElastic,
    };

    /// <summary>Follows the job to its end.</summary>
    public async Task<List<JobEvent>> WatchToEndAsync(string id, long fromSequence = 1)
    {
        List<JobEvent> seen = [];
        await foreach (var item in Job(id).Watch(fromSequence))
            seen.Add(item);
        return seen;
    }

    /// <summary>Follows the job until an event of the kind named fits.</summary>
    public async Task<TEvent> WaitForAsync<TEvent>(string id, Func<TEvent, bool> fits) where TEvent : JobEvent
    {
        await foreach (var item in Job(id).Watch(1))
        {
            if (item is TEvent typed && fits(typed))
                return typed;
        }
        throw new InvalidOperationException($"job {id} ended without the {typeof(TEvent).Name} that was waited for");
    }

    /// <summary>Asks the job, also while its grain moves, until its status fits.</summary>
    public async Task<JobStatus> WaitForStatusAsync(string id, Func<JobStatus, bool> fits)
    {
        using var patience = new CancellationTokenSource(TimeSpan.FromMinutes(2));
        JobStatus? status = null;
        while (true)
        {
            Assert.False(patience.IsCancellationRequested, $"the job stays {status}");
            try
            {
                status = await Job(id).GetStatus();
                if (fits(status))
                    return status;
            }
            catch (Exception moved) when (moved is OrleansException or TimeoutException)
            {
                // The call was on its way to a silo that is gone.
            }
        }
    }

    public async ValueTask DisposeAsync()
    {
        await cluster.StopAllSilosAsync();
        await cluster.DisposeAsync();
    }
}
