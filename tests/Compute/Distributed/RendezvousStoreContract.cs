using System.Text;
using Megatron.Compute.Distributed;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Distributed;

/// <summary>What every <see cref="IRendezvousStore"/> must do; a store's test class derives from this.</summary>
public abstract class RendezvousStoreContract
{
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan Moment = TimeSpan.FromMilliseconds(50);

    /// <summary>Two views of one fresh store, as two ranks hold them.</summary>
    protected abstract IStorePair Open();

    [Fact]
    public void Get_AfterSet_ReturnsTheValue()
    {
        using var pair = Open();
        pair.First.Set("address/0", "10.0.0.1:5"u8);
        Assert.Equal("10.0.0.1:5", Encoding.UTF8.GetString(pair.Second.Get("address/0", Patience, default)));
        pair.Second.Set("address/0", default);
        Assert.Empty(pair.First.Get("address/0", Patience, default));
    }

    [Fact]
    public void Get_BeforeSet_WaitsForIt()
    {
        using var pair = Open();
        RankThreads.Run(2, rank =>
        {
            if (rank == 0) Assert.Equal([1, 2, 3], pair.First.Get("late", Patience, default));
            else pair.Second.Set("late", [1, 2, 3]);
        });
    }

    [Fact]
    public void Get_NeverSet_FaultsWithTheKey()
    {
        using var pair = Open();
        Assert.Contains("nothing", Assert.Throws<RankFaultException>(() => pair.First.Get("nothing", Moment, default)).Message);
    }

    [Fact]
    public void Get_Cancelled_EndsSoon()
    {
        using var pair = Open();
        using var source = new CancellationTokenSource(Moment);
        Assert.Throws<OperationCanceledException>(() => pair.First.Get("nothing", Patience, source.Token));
        pair.First.Set("still", [1]); // the store goes on
        Assert.Equal([1], pair.Second.Get("still", Patience, default));
    }

    [Fact]
    public void Add_FromManyThreads_CountsEach()
    {
        using var pair = Open();
        RankThreads.Run(4, rank =>
        {
            for (var i = 0; i < 25; i++) (rank % 2 == 0 ? pair.First : pair.Second).Add("arrived", 1);
        });
        Assert.Equal(90, pair.First.Add("arrived", -10));
        Assert.Equal("90", Encoding.ASCII.GetString(pair.Second.Get("arrived", Patience, default)));
    }

    [Fact]
    public void Add_KeyIsNoCounter_IsRefused()
    {
        using var pair = Open();
        pair.First.Set("text", "abc"u8);
        Assert.Contains("counter", Assert.Throws<InvalidOperationException>(() => pair.First.Add("text", 1)).Message);
    }

    [Fact]
    public void CompareSet_AbsentAndPresent_FollowsExpectation()
    {
        using var pair = Open();
        Assert.False(pair.First.CompareSet("leader", [1], [2]));
        Assert.True(pair.First.CompareSet("leader", null, [1]));
        Assert.False(pair.Second.CompareSet("leader", null, [9]));
        Assert.False(pair.Second.CompareSet("leader", [7], [9]));
        Assert.True(pair.Second.CompareSet("leader", [1], [2]));
        Assert.Equal([2], pair.First.Get("leader", Patience, default));
        Assert.True(pair.First.CompareSet("leader", [2], []));
        Assert.True(pair.First.CompareSet("leader", [], [3])); // empty is not absent
    }

    [Fact]
    public void Keys_ByPrefix_AreSorted()
    {
        using var pair = Open();
        foreach (var key in (string[])["b/2", "a/1", "b/10", "b/1", "C"]) pair.First.Set(key, [0]);
        Assert.Equal(["b/1", "b/10", "b/2"], pair.Second.Keys("b/"));
        Assert.Equal(5, pair.Second.Keys("").Count);
        Assert.Empty(pair.Second.Keys("x"));
    }

    [Fact]
    public void Set_BeyondTheLimits_IsRefusedBeforeAnythingIsSent()
    {
        using var pair = Open();
        Assert.Throws<ArgumentException>(() => pair.First.Set(new string('k', RendezvousLimits.MaxKeyLength + 1), [0]));
        Assert.Throws<ArgumentException>(() => pair.First.Set("k", new byte[RendezvousLimits.MaxValueLength + 1]));
        var largest = new byte[RendezvousLimits.MaxValueLength];
        largest[^1] = 7;
        pair.First.Set("k", largest);
        Assert.Equal(largest, pair.Second.Get("k", Patience, default));
    }
}

/// <summary>Two ranks' views of one store.</summary>
public interface IStorePair : IDisposable
{
    IRendezvousStore First { get; }

    IRendezvousStore Second { get; }
}
