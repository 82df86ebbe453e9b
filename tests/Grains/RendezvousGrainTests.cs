using System.Collections.Concurrent;
using System.Diagnostics;
using System.Text;
using Megatron.Compute.Distributed;
using Megatron.Compute.Training;
using Megatron.Grains.Rendezvous;
using Megatron.Testing;
using Orleans.Core.Internal;

namespace Megatron.Grains.Tests;

/// <summary>Ranks find one another through a grain, from threads that may block, and only under the attempt in hand.</summary>
public sealed class RendezvousGrainTests
{
    private static readonly TimeSpan patience = TimeSpan.FromMinutes(1);

    [Fact]
    public async Task Store_FromRankThreads_WaitsCountsAndCompares()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        var attempt = new AttemptId("a", 1);
        await cluster.Grains.GetGrain<IRendezvousGrain>(KeyOf(attempt)).Open(attempt.JobId);
        RankThreads.Run(3, rank =>
        {
            var store = new GrainRendezvousStore(cluster.Grains, KeyOf(attempt));
            if (rank == 0) store.Set("address/0", "10.0.0.1:5"u8);
            Assert.Equal("10.0.0.1:5", Encoding.UTF8.GetString(store.Get("address/0", patience, default)));
            store.Add("arrived", 1);
            if (store.CompareSet("leader", null, [(byte)rank])) store.Set("count", [1]);
            store.Get("count", patience, default);
        });
        var one = new GrainRendezvousStore(cluster.Grains, KeyOf(attempt));
        Assert.Equal(13, one.Add("arrived", 10));
        Assert.Equal(["address/0", "arrived", "count", "leader"], one.Keys(""));
        Assert.Contains("nothing", Assert.Throws<RankFaultException>(() => one.Get("nothing", TimeSpan.FromMilliseconds(50), default)).Message, StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => one.Add("leader", 1));
    }

    // What changes nothing when it is done twice is done again; a sum would be wrong.
    [Fact]
    public async Task Store_CallsThatAreLost_AreRepeatedUnlessTheyCount()
    {
        var lost = new ConcurrentDictionary<string, bool>();
        await using var cluster = await TrainingCluster.StartAsync(1, loses: call =>
            call.InterfaceMethod.DeclaringType == typeof(IRendezvousGrain) && call.InterfaceMethod.Name != nameof(IRendezvousGrain.Open) && lost.TryAdd(call.InterfaceMethod.Name, true));
        var attempt = new AttemptId("a", 1);
        await cluster.Grains.GetGrain<IRendezvousGrain>(KeyOf(attempt)).Open(attempt.JobId);
        var store = new GrainRendezvousStore(cluster.Grains, KeyOf(attempt));
        store.Set("key", [1]);
        Assert.Equal([1], store.Get("key", patience, default));
        Assert.Equal(["key"], store.Keys(""));
        Assert.Contains("The rendezvous does not answer", Assert.Throws<RankFaultException>(() => store.Add("sum", 1)).Message, StringComparison.Ordinal);
        Assert.Equal(4, lost.Count);
    }

    [Fact]
    public async Task Store_OfAnAttemptThatIsOverOrUnknown_IsRefused()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        var old = new AttemptId("a", 1);
        var grain = cluster.Grains.GetGrain<IRendezvousGrain>(KeyOf(old));
        await grain.Open(old.JobId);
        await grain.Set("key", [1]);
        await grain.Close();
        foreach (var attempt in new[] { old, new AttemptId("a", 2) })
        {
            var store = new GrainRendezvousStore(cluster.Grains, KeyOf(attempt));
            Assert.Contains("is over or was never begun", Assert.Throws<RankFaultException>(() => store.Set("key", [2])).Message, StringComparison.Ordinal);
            Assert.Throws<RankFaultException>(() => store.Get("key", patience, default));
        }
    }

    // The loss of any silo can end any grain; the ranks would have met in vain.
    [Fact]
    public async Task Grain_ActivatedAnew_KnowsWhatItKnewOnTheSiloOfRankZero()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 3);
        var attempt = new AttemptId("a", 1);
        var grain = cluster.Grains.GetGrain<IRendezvousGrain>(IRendezvousGrain.KeyOf(attempt, "node2/0"));
        await grain.Open("a");
        await grain.Set("key", [1]);
        await grain.AsReference<IGrainManagementExtension>().DeactivateOnIdle();
        Assert.Equal([1], await grain.Get("key", TimeSpan.Zero));
        Assert.Equal(await cluster.SiloOfAsync(2), (await cluster.Grains.GetGrain<IManagementGrain>(0).GetActivationAddress(grain))?.ToParsableString());
    }

    // A rank that waits here longer holds up the next attempt.
    [Fact]
    public async Task Store_WhenTheSiloOfRankZeroIsLost_GivesUpBeforeItsPatienceEnds()
    {
        await using var cluster = await TrainingCluster.StartAsync(1, numSilos: 2);
        string key = IRendezvousGrain.KeyOf(new AttemptId("a", 1), "node1/0");
        await cluster.Grains.GetGrain<IRendezvousGrain>(key).Open("a");
        await cluster.KillSiloAsync(1);
        var store = new GrainRendezvousStore(cluster.Grains, key);
        long started = Stopwatch.GetTimestamp();
        Assert.Contains("No active silo owns the device", Assert.Throws<RankFaultException>(() => store.Set("key", [1])).Message, StringComparison.Ordinal);
        Assert.InRange(Stopwatch.GetElapsedTime(started), TimeSpan.FromSeconds(2), TimeSpan.FromSeconds(8));
    }

    [Fact]
    public async Task Open_OfTheNextAttempt_ClosesTheOneBefore()
    {
        await using var cluster = await TrainingCluster.StartAsync(1);
        var (old, next) = (new AttemptId("a", 1), new AttemptId("a", 2));
        foreach (var attempt in new[] { old, next })
            await cluster.Grains.GetGrain<IRendezvousGrain>(KeyOf(attempt)).Open("a");
        new GrainRendezvousStore(cluster.Grains, KeyOf(next)).Set("key", [2]);
        Assert.Throws<RankFaultException>(() => new GrainRendezvousStore(cluster.Grains, KeyOf(old)).Set("key", [2]));
    }

    private static string KeyOf(AttemptId attempt) => IRendezvousGrain.KeyOf(attempt, "node0/0");
}
