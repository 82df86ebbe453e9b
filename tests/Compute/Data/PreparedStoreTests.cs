using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

/// <summary>The folder of prepared data: made once, found again, continued after a kill, the same bytes on any number of threads.</summary>
public sealed class PreparedStoreTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Build_Twice_UsesThePreparedDataAgain()
    {
        var config = Config(Rows(50));
        var first = Lines(config, out var hash);
        Assert.DoesNotContain(first, line => line.Contains("used again"));
        Assert.Contains(Lines(config, out var again), line => line.Contains("used again"));
        Assert.Equal(hash, again);
        Assert.Contains(Lines(config with { Packing = true, DatasetNumProc = 2, GlobalBatchSize = 2 }, out _), line => line.Contains("used again"));
    }

    [Fact]
    public void Build_AnySettingOfTheEncodingChanged_PreparesAnew()
    {
        var path = Rows(50);
        var config = Config(path);
        Lines(config, out _);
        TrainingConfig[] others =
        [
            config with { MaxLength = 300 }, config with { System = "S" }, config with { LossScale = "all" }, config with { Columns = """{"a":"b"}""" },
            config with { ModelName = ["n"] }, config with { DataSeed = 7 }, config with { UseChatTemplate = false }, config with { LazyTokenize = true },
        ];
        foreach (var other in others) Assert.DoesNotContain(Lines(other, out _), line => line.Contains("used again"));
        File.AppendAllText(path, "\n" + DataFolder.GoodRow);
        Assert.DoesNotContain(Lines(config, out _), line => line.Contains("used again"));
    }

    [Fact]
    public void Build_AnyNumberOfThreads_WritesTheSameBytes()
    {
        var path = Rows(3000, withBadRows: true);
        var one = Prepared(Config(path) with { DatasetCacheDir = _folder.PathOf("one"), DatasetNumProc = 1 });
        var three = Prepared(Config(path) with { DatasetCacheDir = _folder.PathOf("three"), DatasetNumProc = 3 });
        foreach (var name in new[] { "data.bin", "samples.bin", "rows.bin", "prepared.json" })
            Assert.True(File.ReadAllBytes(Path.Combine(one, name)).AsSpan().SequenceEqual(File.ReadAllBytes(Path.Combine(three, name))), name);
    }

    [Fact]
    public void Build_CancelledHalfway_GoesOnAndEndsWithTheSameBytes()
    {
        var path = Rows(20_000, withBadRows: true);
        var whole = Prepared(Config(path) with { DatasetCacheDir = _folder.PathOf("whole") });
        var config = Config(path) with { DatasetCacheDir = _folder.PathOf("halves") };

        // The preparation is ended at the second batch of chunks, and what a kill may leave behind the last note is added by hand.
        using var cancellation = new CancellationTokenSource();
        var tokenizer = new CountingTokenizer(() => cancellation.Cancel(), after: 2000);
        Assert.Throws<OperationCanceledException>(() => DatasetBuilder.Build(config, tokenizer, DataFolder.Template(config), tokenizer.VocabSize, progress: null, cancellation.Token));
        var folder = Assert.Single(Directory.GetDirectories(_folder.PathOf("halves")));
        Assert.True(File.Exists(Path.Combine(folder, "progress.json")));
        Assert.False(File.Exists(Path.Combine(folder, "prepared.json")));
        File.AppendAllText(Path.Combine(folder, "data.bin"), "half a chunk");
        File.AppendAllText(Path.Combine(folder, "rows.bin"), "half");

        Assert.Contains(Lines(config, out _), line => line.Contains("preparation goes on after row"));
        foreach (var name in new[] { "data.bin", "samples.bin", "rows.bin", "prepared.json" })
            Assert.True(File.ReadAllBytes(Path.Combine(whole, name)).AsSpan().SequenceEqual(File.ReadAllBytes(Path.Combine(folder, name))), name);
        Assert.False(File.Exists(Path.Combine(folder, "progress.json")));
    }

    [Fact]
    public async Task Build_FourAtOnce_OneWritesAndAllReadTheSame()
    {
        var config = Config(Rows(3000));
        var hashes = await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Factory.StartNew(
            () =>
            {
                Lines(config, out var hash);
                return hash;
            }, TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default)));
        Assert.Single(hashes.Distinct());
        Assert.Single(Directory.GetDirectories(config.DatasetCacheDir ?? ""));
    }

    [Fact]
    public void Build_Lazy_GivesTheSamplesOfEagerEncoding()
    {
        var config = Config(Rows(60)) with { DatasetShuffle = false };
        using var eager = DataFolder.Build(config);
        using var lazy = DataFolder.Build(config with { LazyTokenize = true });
        Assert.Equal(eager.TrainSamples.Select(sample => sample.TokenIds), lazy.TrainSamples.Select(sample => sample.TokenIds));
        Assert.Equal(eager.TrainSamples.Select(sample => sample.Labels), lazy.TrainSamples.Select(sample => sample.Labels));
        Assert.NotEqual(HashOf(eager), HashOf(lazy));
        using var other = DataFolder.Build(config with { LazyTokenize = true, MaxLength = 400 });
        Assert.NotEqual(HashOf(lazy), HashOf(other));
    }

    [Fact]
    public void Build_LazyRowTooLong_IsReplacedByTheNext()
    {
        var path = _folder.Write("rows.jsonl", $$"""
            {"query":"Q","response":"{{new string('x', 500)}}"}
            {"query":"Q","response":"short"}
            """);
        using var data = DataFolder.Build(Config(path) with { DatasetShuffle = false, LazyTokenize = true, MaxLength = 100 });
        Assert.Equal(data.TrainSamples[1].TokenIds, data.TrainSamples[0].TokenIds);
    }

    [Fact]
    public void Build_BadInput_LeavesNoFolderBehind()
    {
        Assert.Throws<ConfigException>(() => DataFolder.Build(Config(_folder.Write("bad.jsonl", "{\n{\n"))));
        Assert.False(Directory.Exists(_folder.PathOf("cache")));
    }

    [Fact]
    public void Build_WeightedAndSplitSamples_ComeBackAsTheyWere()
    {
        var rows = """{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz","loss":true}]}""";
        var config = Config(_folder.Write("rows.jsonl", rows)) with { UseChatTemplate = false, LossScale = "all", TruncationStrategy = "split", MaxLength = 7 };
        using var data = DataFolder.Build(config);
        Assert.Equal(8, data.TrainSamples.Count);
        // The last position of a part still predicts the first token of the next one.
        var parts = data.TrainSamples.OrderBy(sample => sample.TokenIds[0]).ToArray();
        Assert.All(data.TrainSamples.Where(sample => sample.Length == 7), sample => Assert.NotEqual(-100, sample.Labels[^1]));
    }

    private TrainingConfig Config(string path) => DataFolder.Config(path) with { DatasetCacheDir = _folder.PathOf("cache"), MaxLength = 250 };

    private static ulong HashOf(TrainData data) => data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1)).PlanHash;

    private static List<string> Lines(TrainingConfig config, out ulong hash)
    {
        var lines = new List<string>();
        var tokenizer = new TestTokenizer();
        using var data = DatasetBuilder.Build(config, tokenizer, DataFolder.Template(config), tokenizer.VocabSize, lines.Add);
        hash = HashOf(data);
        return lines;
    }

    private static string Prepared(TrainingConfig config)
    {
        Lines(config, out _);
        return Assert.Single(Directory.GetDirectories(config.DatasetCacheDir ?? ""));
    }

    private string Rows(int count, bool withBadRows = false) => _folder.Write("rows.jsonl", string.Join('\n', Enumerable.Range(0, count).Select(i =>
        withBadRows && i % 211 == 5 ? """{"messages":[]}""" : withBadRows && i % 97 == 3 ? $$"""{"query":"q","response":"{{new string('y', 300)}}"}"""
            : $$"""{"query":"question {{i}}","response":"{{new string('r', i % 40)}} {{i}}","note":1}""")));

    /// <summary>Calls back at the n-th text.</summary>
    private sealed class CountingTokenizer(Action then, int after) : DelegatingTokenizer(new TestTokenizer())
    {
        private int _count;

        public override int[] Encode(string text)
        {
            if (Interlocked.Increment(ref _count) == after) then();
            return base.Encode(text);
        }
    }
}
