using System.Collections.Concurrent;
using Megatron.Compute.Training;
using Megatron.Grains.Jobs;
using Megatron.Testing;
using Orleans.TestingHost;

namespace Megatron.Grains.Tests;

/// <summary>A real silo in this process with fake rank workers; node 0 owns the devices.</summary>
public sealed class TrainingCluster : IAsyncDisposable
{
    private readonly InProcessTestCluster cluster;

    private TrainingCluster(InProcessTestCluster cluster, ConcurrentDictionary<int, FakeRankWorker> workers)
    {
        this.cluster = cluster;
        Workers = workers;
    }

    public ConcurrentDictionary<int, FakeRankWorker> Workers { get; }

    public IGrainFactory Grains => cluster.Client;

    public static async Task<TrainingCluster> StartAsync(
        int numDevices, Func<FakeRankWorker, RankCommand, IEnumerable<RankReport>>? script = null)
    {
        var workers = new ConcurrentDictionary<int, FakeRankWorker>();
        for (int index = 0; index < numDevices; index++)
            workers[index] = new FakeRankWorker(index) { Script = script };
        var builder = new InProcessTestClusterBuilder(1);
        builder.ConfigureSilo((_, silo) =>
        {
            silo.AddMemoryGrainStorage(GrainServices.JobStorage);
            silo.AddTrainingGrains(new NodeIdentity("node0", Enumerable.Range(0, numDevices)), index => workers[index]);
        });
        var cluster = builder.Build();
        await cluster.DeployAsync();
        return new TrainingCluster(cluster, workers);
    }

    public IJobGrain Job(string id) => Grains.GetGrain<IJobGrain>(id);

    public static JobSpec Spec(string id, int worldSize = 1, int pipelineSize = 1, int maxRestarts = 0) => new()
    {
        JobId = id,
        Name = id,
        ConfigJson = "{}",
        WorldSize = worldSize,
        PipelineSize = pipelineSize,
        OutputFolder = "/nowhere",
        MaxRestarts = maxRestarts,
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

    public async ValueTask DisposeAsync()
    {
        await cluster.StopAllSilosAsync();
        await cluster.DisposeAsync();
    }
}
