using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

/// <summary>Streams: the same batches on any layout and number of threads, bounded buffers, and exact continuation from a cursor.</summary>
public sealed class StreamTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Theory]
    [InlineData(false, "binpack")]
    [InlineData(true, "binpack")]
    [InlineData(true, "sequential")]
    public void Get_FromTheCursorOfAnyBatch_GoesOnAsIfNeverInterrupted(bool packing, string strategy)
    {
        // 700 and 500 rows, 300 of the first: several epochs, windows and buffers in 40 batches.
        var config = Config(Rows("a.jsonl", 700) + "#300", Rows("b.jsonl", 500)) with { Packing = packing, PackingLength = packing ? 250 : null, PackingStrategy = strategy, ShuffleBufferSize = 64 };
        using var data = DataFolder.Build(config);
        var whole = Read(data, BatchLayout.SingleRankUnpadded(1), 0, cursor: null, count: 90);
        for (var from = 1; from < 90; from += 7)
        {
            var rest = Read(data, BatchLayout.SingleRankUnpadded(1), from, whole[from - 1].NextCursor, count: Math.Min(20, 90 - from));
            Assert.Equal(whole.Skip(from).Take(rest.Count).Select(batch => batch.Hash), rest.Select(batch => batch.Hash));
            Assert.Equal(whole[from + rest.Count - 1].NextCursor, rest[^1].NextCursor);
        }
    }

    [Fact]
    public void Get_OtherDataParallelSizeFromACursor_HoldsTheSameBatches()
    {
        using var data = DataFolder.Build(Config(Rows("a.jsonl", 300)) with { Packing = true, PackingLength = 250 });
        var one = Read(data, BatchLayout.SingleRankUnpadded(1), 0, null, 30);
        foreach (var rank in new[] { 0, 1 })
        {
            var two = Read(data, BatchLayout.SingleRankUnpadded(2) with { DataParallelSize = 2, DataParallelRank = rank }, 11, one[10].NextCursor, 19);
            Assert.Equal(one.Skip(11).Select(batch => batch.Hash), two.Select(batch => batch.Hash));
            Assert.Equal(one.Skip(11).Select(batch => batch.NumTargetTokensGlobal), two.Select(batch => batch.NumTargetTokensGlobal));
        }
    }

    [Fact]
    public void Get_AnyNumberOfThreads_GivesTheSameBatches()
    {
        var config = Config(Rows("a.jsonl", 900));
        using var one = DataFolder.Build(config);
        using var four = DataFolder.Build(config with { DatasetNumProc = 4 });
        Assert.Equal(Read(one, BatchLayout.SingleRankUnpadded(1), 0, null, 40).Select(batch => batch.Hash), Read(four, BatchLayout.SingleRankUnpadded(1), 0, null, 40).Select(batch => batch.Hash));
        Assert.Equal(one.PlanHash, four.PlanHash);
    }

    [Fact]
    public void Get_NoShuffle_KeepsTheOrderAndBeginsAgain()
    {
        using var data = DataFolder.Build(Config(Rows("a.jsonl", 5), Rows("b.jsonl", 3)) with { DatasetShuffle = false, GlobalBatchSize = 1 });
        Assert.Equal(["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "a0", "a1"], Texts(data, 10));
    }

    [Fact]
    public void Get_OneEpoch_HoldsEachRowOnceInAnotherOrderEachTime()
    {
        using var data = DataFolder.Build(Config(Rows("a.jsonl", 200)) with { GlobalBatchSize = 1, ShuffleBufferSize = 50 });
        var texts = Texts(data, 400);
        var all = Enumerable.Range(0, 200).Select(i => $"a{i}").Order().ToArray();
        Assert.Equal(all, texts[..200].Order());
        Assert.Equal(all, texts[200..].Order());
        Assert.NotEqual(texts[..200], texts[200..]);
        // A buffer of 50 cannot bring a row forward by more than its size.
        for (var i = 0; i < 200; i++) Assert.True(int.Parse(texts[i][1..]) < i + 50);
    }

    [Theory]
    [InlineData("first_exhausted")]
    [InlineData("all_exhausted")]
    public void Get_Interleaved_FollowsTheProbabilities(string strategy)
    {
        var config = Config(Rows("a.jsonl", 300), Rows("b.jsonl", 100)) with { InterleaveProb = [0.5, 0.5], StoppingStrategy = strategy, GlobalBatchSize = 1, DatasetShuffle = false };
        using var data = DataFolder.Build(config);
        var texts = Texts(data, 150);
        Assert.InRange(texts.Count(text => text[0] == 'a'), 55, 95);
        foreach (var set in texts[..100].GroupBy(text => text[0])) Assert.Equal(Enumerable.Range(0, set.Count()).Select(i => $"{set.Key}{i}"), set);
    }

    [Fact]
    public void Get_BadRows_AreLeftOutAndCounted()
    {
        var path = _folder.Write("rows.jsonl", string.Join('\n', Enumerable.Range(0, 1500).Select(i => i % 300 == 7 ? """{"messages":[]}""" : Row("a", i))));
        using var data = DataFolder.Build(Config(path));
        var source = Assert.IsType<Megatron.Compute.Data.Streaming.StreamBatchSource>(data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1)));
        for (var i = 0; i < 100; i++) source.Get(i);
        Assert.Contains(source.Report, line => line.Contains("messages is empty DATA004"));
    }

    [Theory]
    [InlineData("{\n{\n{\n", "DATA001")]
    [InlineData("{\"messages\":[]}\n", "DATA004")]
    public void Get_NoRowThatCanBeUsed_EndsInsteadOfReadingForEver(string text, string code)
    {
        using var data = DataFolder.Build(Config(_folder.Write("bad.jsonl", text)));
        var source = data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1));
        Assert.Equal(code, Assert.Throws<ConfigException>(() => source.Get(0)).Errors[0].Code);
    }

    [Fact]
    public void Get_FilesShorterThanTheCursor_IsRefused()
    {
        var path = Rows("a.jsonl", 400);
        string? cursor;
        using (var data = DataFolder.Build(Config(path))) cursor = Read(data, BatchLayout.SingleRankUnpadded(1), 0, null, 60)[^1].NextCursor;
        Rows("a.jsonl", 50);
        using var shorter = DataFolder.Build(Config(path));
        Assert.Equal("DATA030", Assert.Throws<ConfigException>(() => shorter.CreateTrainSource(BatchLayout.SingleRankUnpadded(1), 60, cursor)).Errors[0].Code);
        Assert.Equal("DATA032", Assert.Throws<ConfigException>(() => shorter.CreateTrainSource(BatchLayout.SingleRankUnpadded(1), 60, "{}")).Errors[0].Code);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Prefetching_AnyNumberOfThreads_GivesTheSourcesBatchesInOrder(int numThreads)
    {
        using var data = DataFolder.Build(Config(Rows("a.jsonl", 100)) with { Streaming = false, DataloaderType = "cyclic" });
        var plain = data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1));
        using var ahead = new PrefetchingSource(data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1)), numThreads, first: 3, end: 40);
        for (var i = 3; i < 40; i++) Assert.Equal(plain.Get(i).Hash, ahead.Get(i).Hash);
        Assert.Equal(plain.PlanHash, ahead.PlanHash);
    }

    [Fact]
    public void Prefetching_Failure_ComesOutWithItsBatch()
    {
        using var ahead = new PrefetchingSource(new FailingSource(), numThreads: 2, first: 0, end: 10);
        for (var i = 0; i < 4; i++) ahead.Get(i);
        Assert.Equal("batch 4", Assert.Throws<InvalidOperationException>(() => ahead.Get(4)).Message);
    }

    [Fact]
    public void Prefetching_Staging_IsDoneAheadAndWhatNobodyTookIsFreed()
    {
        using var data = DataFolder.Build(Config(Rows("a.jsonl", 100)) with { Streaming = false, DataloaderType = "cyclic" });
        List<StagedMicroBatch> made = [];
        GlobalBatch taken;
        using (var ahead = new PrefetchingSource(data.CreateTrainSource(BatchLayout.SingleRankUnpadded(1)), numThreads: 1, first: 0, end: 3, batch =>
        {
            StagedMicroBatch[] staged = [.. batch.MicroBatches.Select(row => new StagedMicroBatch(row))];
            made.AddRange(staged);
            return batch with { Staged = staged };
        }))
            taken = ahead.Get(0);
        Assert.NotNull(taken.Staged);
        Assert.Equal(taken.MicroBatches[0].TokenIds, taken.Staged[0].TokenIds.data<long>().ToArray());
        Assert.Equal(taken.MicroBatches[0].NumTargetTokens, taken.Staged[0].LossWeights.sum().item<float>());
        Assert.All(made, staged => Assert.Equal(!taken.Staged.Contains(staged), staged.TokenIds.IsInvalid));
        foreach (var staged in taken.Staged) staged.Dispose();
    }

    private static TrainingConfig Config(params string[] datasets) =>
        DataFolder.Config(datasets) with { Streaming = true, DataloaderType = "external", GlobalBatchSize = 8, TrainIters = 100, MaxLength = 250 };

    private static List<GlobalBatch> Read(TrainData data, BatchLayout layout, long first, string? cursor, int count)
    {
        var source = data.CreateTrainSource(layout, first, cursor);
        using (source as IDisposable) return [.. Enumerable.Range(0, count).Select(i => source.Get(first + i))];
    }

    private static string[] Texts(TrainData data, int count)
    {
        var tokenizer = new TestTokenizer();
        return [.. Read(data, BatchLayout.SingleRankUnpadded(1), 0, null, count).Select(batch =>
            tokenizer.Decode([.. batch.MicroBatches[0].TokenIds.Select(id => (int)id)], skipSpecialTokens: true).Split('=')[1])];
    }

    private static string Row(string name, int i) => $$"""{"query":"question {{new string('q', i * 7 % 60)}}","response":"={{name}}{{i}}"}""";

    private string Rows(string name, int count) => _folder.Write(name, string.Join('\n', Enumerable.Range(0, count).Select(i => Row(name[..1], i))));

    private sealed class FailingSource : IGlobalBatchSource
    {
        public ulong PlanHash => 1;
        public long NumBatchesPerEpoch => 10;

        public GlobalBatch Get(long index) =>
            index == 4 ? throw new InvalidOperationException("batch 4") : new GlobalBatch(index, [], 0, 0, 0, 0) { FirstMicroBatchIndex = 0 };
    }
}
