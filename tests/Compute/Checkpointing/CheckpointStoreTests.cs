using Megatron.Compute.Checkpointing;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class CheckpointStoreTests
{
    [Fact]
    public void SaveAndLoad_AnyLayoutIntoAnyLayout_GivesEveryElement()
    {
        var seed = Environment.TickCount;
        TestContext.Current.TestOutputHelper?.WriteLine($"seed {seed}");
        using var leaks = LeakCheck.Start();
        var random = new Random(seed);
        for (var round = 0; round < 25; round++)
        {
            using var folder = new TemporaryFolder();
            var store = new CheckpointStore(folder.Root, TimeProvider.System);
            var saved = CheckpointSample.Save(store, 100, ranks: random.Next(1, 6), seed: random.Next());
            CheckpointSample.AssertLoads(saved, random);
        }
    }

    [Fact]
    public void Commit_Folder_HasFinalNameHintManifestAndLoadsAsHuggingFaceFolder()
    {
        using var leaks = LeakCheck.Start();
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var saved = CheckpointSample.Save(store, 100, ranks: 2);
        Assert.Equal(folder.Combine("iter_0000100"), saved.Folder);
        Assert.Equal("100", File.ReadAllText(folder.Combine("latest_checkpointed_iteration.txt")));
        Assert.Equal(["iter_0000100", "latest_checkpointed_iteration.txt"], Directory.EnumerateFileSystemEntries(folder.Root).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal));
        Assert.Equal(
            ["args.json", "config.json", "manifest.json", "model.safetensors", "state/rank-00000.safetensors", "state/rank-00001.safetensors"],
            Directory.EnumerateFiles(saved.Folder, "*", SearchOption.AllDirectories).Select(path => Path.GetRelativePath(saved.Folder, path)).Order(StringComparer.Ordinal));
        var search = store.FindNewestVerified(CheckpointVerification.Full);
        Assert.Empty(search.Notices);
        Assert.Equal(saved.Folder, search.Found?.Folder);
        Assert.Equal(saved.Manifest.Run.Trainer, search.Found?.Manifest.Run.Trainer);
        Assert.Equal(saved.Manifest.ToJson(), search.Found?.Manifest.ToJson());
        using var weights = HfWeightFolder.Open(saved.Folder);
        weights.Check([.. CheckpointSample.Tensors.Select(tensor => new ExpectedTensor(tensor.Name, tensor.Shape))], new HashSet<string>());
    }

    [Fact]
    public void Commit_SameStateInDifferentLayouts_SameWeightBytesAndHashAndChainedManifests()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var first = CheckpointSample.Save(store, 10, ranks: 1, seed: 5);
        var second = CheckpointSample.Save(store, 20, ranks: 4, seed: 6);
        Assert.Equal(first.Manifest.WeightHash, second.Manifest.WeightHash);
        Assert.Equal(File.ReadAllBytes(Path.Combine(first.Folder, "model.safetensors")), File.ReadAllBytes(Path.Combine(second.Folder, "model.safetensors")));
        Assert.Null(first.Manifest.PreviousManifestHash);
        Assert.Equal(Convert.ToHexStringLower(System.IO.Hashing.XxHash128.Hash(File.ReadAllBytes(Path.Combine(first.Folder, "manifest.json")))), second.Manifest.PreviousManifestHash);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Save_FaultAtEveryStep_KeepsAVerifiedCheckpointAndTheNextSaveWorks(bool sameIteration)
    {
        using var leaks = LeakCheck.Start();
        var steps = 0;
        for (var failAt = 1; ; failAt++)
        {
            using var folder = new TemporaryFolder();
            CheckpointSample.Save(new CheckpointStore(folder.Root, TimeProvider.System), 10, seed: 3);
            var iteration = sameIteration ? 10 : 20;
            var count = 0;
            var faulty = new CheckpointStore(folder.Root, TimeProvider.System, step =>
            {
                if (++count == failAt) throw new IOException($"injected before: {step}");
            });
            var failed = false;
            try
            {
                CheckpointSample.Save(faulty, iteration, ranks: 2, seed: failAt, saveId: "faulty");
            }
            catch (IOException exception) when (exception.Message.StartsWith("injected", StringComparison.Ordinal))
            {
                failed = true;
            }
            var store = new CheckpointStore(folder.Root, TimeProvider.System);
            var found = store.FindNewestVerified(CheckpointVerification.Full).Found;
            Assert.NotNull(found);
            CheckpointSample.AssertLoads(found, new Random(failAt));
            store.CollectGarbage(attempt: 2);
            Assert.DoesNotContain(Directory.EnumerateDirectories(folder.Root), path => Path.GetFileName(path).StartsWith('.'));
            var next = CheckpointSample.Save(store, 30, attempt: 2);
            Assert.Equal(next.Folder, store.FindNewestVerified(CheckpointVerification.Full).Found?.Folder);
            steps = failAt;
            if (!failed) break;
        }
        TestContext.Current.TestOutputHelper?.WriteLine($"{steps - 1} fault points");
        Assert.True(steps > 6, $"only {steps} steps");
    }

    [Fact]
    public void FindNewestVerified_EveryByteDamaged_FallsBackWithNotice()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var older = CheckpointSample.Save(store, 50);
        var newest = CheckpointSample.Save(store, 100);
        var random = new Random(11);
        foreach (var file in Directory.EnumerateFiles(newest.Folder, "*", SearchOption.AllDirectories))
        {
            var good = File.ReadAllBytes(file);
            for (var i = 0; i < 12; i++)
            {
                var bad = (byte[])good.Clone();
                bad[random.Next(bad.Length)] ^= (byte)(1 << random.Next(8));
                File.WriteAllBytes(file, bad);
                AssertFellBack(store.FindNewestVerified(CheckpointVerification.Full), older);
            }
            File.WriteAllBytes(file, good[..^1]);
            AssertFellBack(store.FindNewestVerified(CheckpointVerification.Sizes), older);
            File.Delete(file);
            AssertFellBack(store.FindNewestVerified(CheckpointVerification.Sizes), older);
            File.WriteAllBytes(file, good);
        }
        File.WriteAllText(Path.Combine(newest.Folder, "extra.bin"), "x");
        AssertFellBack(store.FindNewestVerified(CheckpointVerification.Sizes), older);
        File.Delete(Path.Combine(newest.Folder, "extra.bin"));
        Assert.Equal(newest.Folder, store.FindNewestVerified(CheckpointVerification.Full).Found?.Folder);
    }

    [Fact]
    public void FindNewestVerified_FilesSwappedBetweenSteps_FallsBack()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var older = CheckpointSample.Save(store, 50, seed: 1);
        var newest = CheckpointSample.Save(store, 100, seed: 2);
        const string state = "state/rank-00000.safetensors";
        File.Copy(Path.Combine(older.Folder, state), Path.Combine(newest.Folder, state), overwrite: true);
        AssertFellBack(store.FindNewestVerified(CheckpointVerification.Full), older);
        File.Delete(Path.Combine(newest.Folder, state));
        File.CreateSymbolicLink(Path.Combine(newest.Folder, state), Path.Combine(older.Folder, state));
        AssertFellBack(store.FindNewestVerified(CheckpointVerification.Full), older);
    }

    [Fact]
    public void Commit_StaleAttemptMissingFileOrMissingBlock_IsRefusedAndNothingChanges()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var committed = CheckpointSample.Save(store, 10, attempt: 3);
        Assert.Equal(committed.Folder, store.Commit("s10", CheckpointSample.Facts(10, 3), []).Folder);
        Assert.Contains("may not commit", Assert.Throws<IOException>(() => CheckpointSample.Save(store, 20, attempt: 2)).Message);
        Assert.Contains("never begun", Assert.Throws<IOException>(() => store.Commit("none", CheckpointSample.Facts(20, 3), [])).Message);

        var contents = CheckpointSample.Contents(3, new Random(4));
        var temporary = store.BeginSave(3, "part", 10_000);
        var parts = contents.Select((content, rank) => CheckpointWriter.WriteRank(temporary, rank, content)).ToList();
        Assert.Contains("exactly once", Assert.Throws<IOException>(() => store.Commit("part", CheckpointSample.Facts(20, 3), parts[..1])).Message);
        var state = Path.Combine(temporary, "state", "rank-00001.safetensors");
        File.WriteAllBytes(state, File.ReadAllBytes(state)[..^4]);
        Assert.Contains("its rank reported", Assert.Throws<IOException>(() => store.Commit("part", CheckpointSample.Facts(20, 3), parts)).Message);
        Assert.Equal(["iter_0000010"], Directory.GetDirectories(folder.Root, "iter_*").Select(path => Path.GetFileName(path)));
    }

    [Fact]
    public void BeginSave_TooLittleSpace_IsRefused()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        Assert.Contains("MiB free", Assert.Throws<IOException>(() => store.BeginSave(1, "a", 1L << 60)).Message);
        Assert.Empty(Directory.GetFileSystemEntries(folder.Root));
        Assert.Throws<ArgumentException>(() => store.BeginSave(1, "../a", 1));
    }

    [Fact]
    public void Prune_KeepsTheNewestAndTheLastVerifiedOne()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var saved = Enumerable.Range(1, 6).Select(index => CheckpointSample.Save(store, index * 10)).ToList();
        Assert.Equal([saved[0].Folder, saved[1].Folder], store.Prune(4, CheckpointVerification.Full));
        // The three newest are torn: the newest that verifies is the fourth, and it stays although only two are to be kept.
        foreach (var torn in saved[3..]) File.Delete(Path.Combine(torn.Folder, "manifest.json"));
        Assert.Equal([saved[3].Folder], store.Prune(2, CheckpointVerification.Full));
        Assert.Equal(saved[2].Folder, store.FindNewestVerified(CheckpointVerification.Full).Found?.Folder);
        Assert.Equal([], store.Prune(1, CheckpointVerification.Full, inUse: saved[4].Folder));
    }

    [Fact]
    public void CollectGarbage_OnlyOldAttemptsAndOldFolders()
    {
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        foreach (var name in new[] { ".tmp-1-a", ".tmp-2-a", ".tmp-2-old", ".deleting-iter_0000001", ".other", "iter_0000001", ".tmp-x-a" })
            Directory.CreateDirectory(folder.Combine(name, "state"));
        Directory.SetLastWriteTimeUtc(folder.Combine(".tmp-2-old"), DateTime.UnixEpoch);
        Assert.Equal([".deleting-iter_0000001", ".tmp-1-a", ".tmp-2-old"], store.CollectGarbage(2).Select(path => Path.GetFileName(path)));
        Assert.Equal(4, Directory.GetDirectories(folder.Root).Length);
    }

    private static void AssertFellBack(CheckpointSearch search, StoredCheckpoint older)
    {
        Assert.Equal(older.Folder, search.Found?.Folder);
        Assert.Contains(search.Notices, notice => notice.Contains("passed over", StringComparison.Ordinal));
        Assert.Contains(search.Notices, notice => notice.Contains("50 iterations are lost", StringComparison.Ordinal));
    }
}
