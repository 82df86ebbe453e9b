using Megatron.Compute.Checkpointing;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Tests.Checkpointing;
using Megatron.Compute.Training;
using Megatron.Compute.Training.Snapshots;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Training.Snapshots;

/// <summary>Ranks as threads with known state in a random layout, one store for each node; what a loss leaves is written and loaded again.</summary>
public sealed class PeerSnapshotsTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public PeerSnapshotsTests() => TorchTestSetup.EnsureLoaded();

    public void Dispose() => folder.Dispose();

    [Theory]
    [InlineData("1,0", "0,1", 0)]
    [InlineData("1,0", "0,1", 1)]
    [InlineData("1,2,0", "0,1,2", 1)]
    [InlineData("2,3,0,1", "0,0,1,1", 0)]
    [InlineData("3,3,3,0", "0,0,0,1", 1)]
    [InlineData("3,3,3,0", "0,0,0,1", 0)]
    [InlineData("0", "0", -1)]
    [InlineData("0,1", "0,0", -1)]
    public async Task Snapshot_ANodeIsLost_TheOthersWriteACheckpointWithEveryBit(string partnerText, string nodeText, int lost)
    {
        int seed = Random.Shared.Next();
        int[] partners = Numbers(partnerText), nodes = Numbers(nodeText);
        var stores = MakeStores(nodes);
        RunRanks(seed, partners, nodes, stores, (rank, snapshots, state) =>
        {
            snapshots.Take(Run(6, partners.Length), state);
            snapshots.Complete();
            snapshots.Complete(); // there is none on its way
        });

        var left = stores.Where((_, node) => node != lost).ToList();
        var holdings = left.Select(store => Assert.Single(store.Find("job"))).ToList();
        Assert.All(holdings, holding => Assert.Equal((1, 6, partners.Length), (holding.Attempt, holding.Iteration, holding.WorldSize)));
        Assert.Equal(Enumerable.Range(0, partners.Length), holdings.SelectMany(holding => holding.Ranks).Distinct().Order());
        var stored = await WriteAsync(left, 6, attempt: 2);
        AssertHoldsTheSample(stored, seed);
        Assert.Equal((2, 6, false), (stored.Manifest.Run.Attempt, stored.Manifest.Run.Trainer.Iteration, stored.Manifest.HasWeightFiles()));
        foreach (var store in stores) store.Dispose();
    }

    [Fact]
    public void Take_AgainAndAgain_KeepsTwoSnapshots()
    {
        var stores = MakeStores([0, 1]);
        RunRanks(1, [1, 0], [0, 1], stores, (rank, snapshots, state) =>
        {
            for (var step = 1; step <= 6; step++)
            {
                snapshots.Complete();
                snapshots.Take(Run(step, 2), state);
                var holdings = stores[rank].Find("job");
                Assert.Equal(step == 1 ? [(1L, 1)] : new[] { (step - 1L, 2), (step, 1) }, holdings.Select(holding => (holding.Iteration, holding.Ranks.Count)));
            }
            snapshots.Complete();
        });
        Assert.All(stores, store => Assert.Equal([0, 1], Assert.Single(store.Find("job")).Ranks));
        Assert.All(stores, store => Assert.Equal((6L, 1), (store.Find("job")[0].Iteration, store.Find("job")[0].Attempt)));
        foreach (var store in stores) store.Dispose();
    }

    [Fact]
    public void Complete_APeerThatIsLate_CountsAsWaiting()
    {
        var stores = MakeStores([0, 1]);
        var first = new TaskCompletionSource<Thread>(TaskCreationOptions.RunContinuationsAsynchronously);
        RunRanks(1, [1, 0], [0, 1], stores, (rank, snapshots, state) =>
        {
            var before = snapshots.BlockedTime;
            if (rank == 0) first.SetResult(Thread.CurrentThread);
            else SpinWait.SpinUntil(() => first.Task.IsCompleted && first.Task.Result.ThreadState.HasFlag(ThreadState.WaitSleepJoin));
            snapshots.Take(Run(6, 2), state);
            snapshots.Complete();
            if (rank == 0) Assert.True(snapshots.BlockedTime > before, $"{snapshots.BlockedTime} is not more than {before}");
        });
        foreach (var store in stores) store.Dispose();
    }

    [Fact]
    public async Task Peer_LostWhileACopyIsOnItsWay_LeavesTheSnapshotBefore()
    {
        var stores = MakeStores([0, 1]);
        var world = new LoopbackWorld(TimeSpan.FromMinutes(1));
        RunRanks(1, [1, 0], [0, 1], stores, (rank, snapshots, state) =>
        {
            snapshots.Take(Run(6, 2), state);
            snapshots.Complete();
            if (rank == 1)
            {
                world.Abort("rank 1 is gone");
                return;
            }
            try
            {
                snapshots.Take(Run(7, 2), state);
                snapshots.Complete();
                Assert.Fail("rank 0 went on alone");
            }
            catch (RankFaultException)
            {
                // as it should be
            }
        }, world);
        var holdings = stores[0].Find("job");
        Assert.Equal("0 1", string.Join(' ', holdings[0].Ranks));
        Assert.All(holdings.Skip(1), torn => Assert.Equal((7, "0"), (torn.Iteration, string.Join(' ', torn.Ranks))));
        AssertHoldsTheSample(await WriteAsync([stores[0]], 6, attempt: 2), 1);
        foreach (var store in stores) store.Dispose();
    }

    [Fact]
    public async Task Write_ForTheNextAttempt_ClosesTheOldOne()
    {
        var stores = MakeStores([0]);
        var store = stores[0];
        RunRanks(1, [0], [0], stores, (_, snapshots, state) =>
        {
            snapshots.Take(Run(6, 1), state);
            snapshots.Complete();
        });
        await WriteAsync(stores, 6, attempt: 2);
        // A thread that was left behind.
        RunRanks(1, [0], [0], stores, (_, snapshots, state) => Assert.Throws<RankFaultException>(() => snapshots.Take(Run(7, 1), state)));
        Assert.Equal(6, Assert.Single(store.Find("job")).Iteration);
        RunRanks(1, [0], [0], stores, (_, snapshots, state) =>
        {
            snapshots.Take(Run(7, 1, attempt: 2), state);
            snapshots.Complete();
        });
        store.Discard("job", 2);
        Assert.Equal((2, 7), (Assert.Single(store.Find("job")).Attempt, store.Find("job")[0].Iteration));
        store.Discard("job", int.MaxValue);
        Assert.Empty(store.Find("job"));
        var gone = await Assert.ThrowsAsync<InvalidOperationException>(() => store.Write(new SnapshotOrder(new AttemptId("job", 3), 2, 7, [0])));
        Assert.Equal("the snapshot of step 7 is not here any more", gone.Message);
    }

    // As by a job whose grain has moved meanwhile: two writers of the same files would spoil them.
    [Fact]
    public async Task WriteAndCommit_AskedForAgain_AreDoneOnce()
    {
        using var store = new PeerSnapshotStore(TimeProvider.System, new SideEffectFence());
        RunRanks(1, [0], [0], [store], (_, snapshots, state) =>
        {
            snapshots.Take(Run(6, 1), state);
            snapshots.Complete();
        });
        SnapshotOrder Order() => new(new AttemptId("job", 2), 1, 6, [0]);
        var writes = new[] { store.Write(Order()), store.Write(Order()) };
        var receipts = await writes[0];
        Assert.Same(receipts, await writes[1]);
        var commits = new[] { store.Commit(Order(), receipts), store.Commit(Order(), receipts) };
        var folders = await Task.WhenAll(commits);
        Assert.Equal(folders[0], folders[1]);
        AssertHoldsTheSample(new StoredCheckpoint(folders[0], CheckpointStore.Verify(folders[0], CheckpointVerification.Full)), 1);
    }

    [Fact]
    public async Task Write_ByASiloThatMayNotWrite_IsRefused()
    {
        var fence = new SideEffectFence();
        using var store = new PeerSnapshotStore(TimeProvider.System, fence);
        RunRanks(1, [0], [0], [store], (_, snapshots, state) =>
        {
            snapshots.Take(Run(6, 1), state);
            snapshots.Complete();
        });
        fence.Close("it is cut off");
        var refused = await Assert.ThrowsAsync<IOException>(() => store.Write(new SnapshotOrder(new AttemptId("job", 2), 1, 6, [0])));
        Assert.Equal("This silo may not write: it is cut off.", refused.Message);
    }

    private static int[] Numbers(string text) => [.. text.Split(',').Select(int.Parse)];

    private static List<PeerSnapshotStore> MakeStores(int[] nodes) =>
        [.. nodes.Distinct().Select(_ => new PeerSnapshotStore(TimeProvider.System, new SideEffectFence()))];

    private SnapshotRun Run(long iteration, int worldSize, int attempt = 1) => new()
    {
        Facts = CheckpointSample.Facts(iteration, attempt),
        WorldSize = worldSize,
        Root = folder.Combine("run"),
        ModelPlan = CheckpointSample.Plan(),
        SideFiles = new HfSideFiles { Config = "{}"u8.ToArray(), Args = "{}"u8.ToArray() },
    };

    /// <summary>Runs a thread for each rank with the state that it has in the layout of the seed.</summary>
    private static void RunRanks(
        int seed, int[] partners, int[] nodes, IReadOnlyList<PeerSnapshotStore> stores, Action<int, PeerSnapshots, IReadOnlyList<StateSlice>> body, LoopbackWorld? world = null)
    {
        world ??= new LoopbackWorld(TimeSpan.FromMinutes(1));
        RankThreads.Run(partners.Length, rank =>
        {
            using var scope = NewDisposeScope();
            var state = CheckpointSample.Contents(partners.Length, new Random(seed))[rank].State;
            using var group = partners.Length == 1 ? new SingleRankGroup("world", 0) : world.Create("world", rank, [.. Enumerable.Range(0, partners.Length)]);
            using var links = PeerLinks.Open(partners, rank, () => world);
            using var snapshots = new PeerSnapshots(stores[nodes[rank]], group, links, CPU);
            snapshots.Prepare("job", state);
            body(rank, snapshots, state);
        }, failure => world.Abort(failure.Message));
    }

    /// <summary>What the control plane does: each part is written by one of its holders, the first one commits.</summary>
    private static async Task<StoredCheckpoint> WriteAsync(IReadOnlyList<PeerSnapshotStore> left, long iteration, int attempt)
    {
        var (receipts, written) = (new List<CheckpointReceipt>(), new HashSet<int>());
        var order = new SnapshotOrder(new AttemptId("job", attempt), 1, iteration, []);
        foreach (var store in left)
        {
            int[] ranks = [.. store.Find("job").Single(holding => holding.Iteration == iteration).Ranks.Where(written.Add)];
            receipts.AddRange(await store.Write(order with { Ranks = ranks }));
        }
        var folder = await left[0].Commit(order, receipts);
        return new StoredCheckpoint(folder, CheckpointStore.Verify(folder, CheckpointVerification.Full));
    }

    private static void AssertHoldsTheSample(StoredCheckpoint checkpoint, int seed)
    {
        using var scope = NewDisposeScope();
        using var reader = new CheckpointReader(checkpoint);
        for (var t = 0; t < CheckpointSample.Tensors.Length; t++)
        {
            var (name, shape) = CheckpointSample.Tensors[t];
            for (var kind = 0; kind < CheckpointSample.Kinds.Length; kind++)
            {
                var whole = BlockRange.WholeTensor(shape);
                var slice = new StateSlice(TensorBlock.Whole(name, shape), CheckpointSample.Kinds[kind], 0, whole.Count, full(whole.Count, float.NaN));
                reader.LoadState([slice]);
                Assert.True(slice.Values.Equals(CheckpointSample.Values(t, kind, whole)), $"{name} {CheckpointSample.Kinds[kind]}, seed {seed}");
            }
        }
    }
}
