using System.Collections.Concurrent;
using System.Text;
using Megatron.Compute.Distributed;
using Megatron.Compute.Training;
using Megatron.Grains.Rendezvous;
using Megatron.Testing;

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
        await cluster.Grains.GetGrain<IRendezvousGrain>(IRendezvousGrain.KeyOf(attempt)).Open();
        RankThreads.Run(3, rank =>
        {
            var store = new GrainRendezvousStore(cluster.Grains, attempt);
            if (rank == 0) store.Set("address/0", "10.0.0.1:5"u8);
            Assert.Equal("10.0.0.1:5", Encoding.UTF8.GetString(store.Get("address/0", patience, default)));
            store.Add("arrived", 1);
            if (store.CompareSet("leader", null, [(byte)rank])) store.Set("count", [1]);
            store.Get("count", patience, default);
        });
        var one = new GrainRendezvousStore(cluster.Grains, attempt);
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
        await cluster.Grains.GetGrain<IRendezvousGrain>(IRendezvousGrain.KeyOf(attempt)).Open();
        var store = new GrainRendezvousStore(cluster.Grains, attempt);
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
        var grain = cluster.Grains.GetGrain<IRendezvousGrain>(IRendezvousGrain.KeyOf(old));
        await grain.Open();
        await grain.Set("key", [1]);
        await grain.Close();
        foreach (var attempt in new[] { old, new AttemptId("a", 2) })
        {
            var store = new GrainRendezvousStore(cluster.Grains, attempt);
            Assert.Contains("is over or was never begun", Assert.Throws<RankFaultException>(() => store.Set("key", [2])).Message, StringComparison.Ordinal);
            Assert.Throws<RankFaultException>(() => store.Get("key", patience, default));
        }
    }
}
