using Megatron.Compute.Configuration;
using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

public sealed class DatasetBuilderTests : IDisposable
{
    private readonly DataFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void Build_QuickStart_Gives1489TrainAnd11ValidationSamples()
    {
        var config = new TrainingConfig
        {
            Dataset = [Rows("zh.jsonl", 600) + "#500", Rows("en.jsonl", 700) + "#500", Rows("self.jsonl", 108) + "#500"],
            MicroBatchSize = 4, GlobalBatchSize = 16, TrainIters = 100, EvalIters = 5,
        };
        var data = DataFolder.Build(config);
        Assert.Equal(1489, data.TrainSamples.Count);
        Assert.Equal(11, data.ValidationSamples.Count);
        Assert.Equal(11, data.ValidationSplit.Count);
        Assert.Equal(100, data.LastIteration);
        Assert.Equal(5, data.EvalIters);
        // The reference drops the odd sample and begins its second pass with iteration 94; here that sample is the first of iteration 94.
        Assert.Equal(0, data.EpochOf(94));
        Assert.Equal(1, data.EpochOf(95));
        Assert.Contains(data.Report, line => line.EndsWith("self.jsonl: 499 rows for training, 1 for validation"));
    }

    [Fact]
    public void Build_SameSeed_GivesTheSamePlanAndAnotherSeedAnother()
    {
        var config = DataFolder.Config(Rows("a.jsonl", 40), Rows("b.jsonl", 30) + "#10") with { SplitDatasetRatio = 0.1, GlobalBatchSize = 4 };
        Assert.Equal(PlanHash(config), PlanHash(config));
        Assert.Equal(PlanHash(config), PlanHash(config with { DataSeed = config.Seed, Seed = 7 }));
        Assert.Equal(PlanHash(config), PlanHash(config with { DatasetNumProc = 2 }));
        Assert.NotEqual(PlanHash(config), PlanHash(config with { DataSeed = 7 }));
        Assert.NotEqual(PlanHash(config), PlanHash(config with { GlobalBatchSize = 8 }));
        Assert.NotEqual(PlanHash(config), PlanHash(config with { LossScale = "all" }));
    }

    [Fact]
    public void Build_ValDatasetGiven_SplitsNothingOff()
    {
        var data = DataFolder.Build(DataFolder.Config(Rows("a.jsonl", 40)) with { SplitDatasetRatio = 0.5, ValDataset = [Rows("v.jsonl", 7) + "#5"] });
        Assert.Equal(40, data.TrainSamples.Count);
        Assert.Equal(5, data.ValidationSamples.Count);
        Assert.Empty(data.ValidationSplit);
    }

    [Fact]
    public void Build_NoShuffle_KeepsTheOrderOfTheFiles()
    {
        var config = DataFolder.Config(Rows("a.jsonl", 3), Rows("b.jsonl", 2)) with { DatasetShuffle = false, UseChatTemplate = false };
        Assert.Equal(["a0", "a1", "a2", "b0", "b1"], DataFolder.Texts(config).Select(text => text.Split('-')[1].Split('<')[0]));
    }

    [Fact]
    public void WriteValidationSplit_Rows_CanBeReadBackAsTheSameSamples()
    {
        var rows = string.Join('\n', Enumerable.Range(0, 20).Select(i =>
            $$"""{"system":"S {{i}}","messages":[{"role":"user","content":"\"你\" {{i}}"},{"role":"assistant","content":"A","loss":{{(i % 2 == 0 ? "true" : "null")}}}]}"""));
        var data = DataFolder.Build(DataFolder.Config(_folder.Write("rows.jsonl", rows)) with { SplitDatasetRatio = 0.4 });
        data.WriteValidationSplit(_folder.PathOf("val_dataset.jsonl"));
        var again = DataFolder.Build(DataFolder.Config(_folder.PathOf("val_dataset.jsonl")) with { DatasetShuffle = false });
        Assert.Equal(8, again.TrainSamples.Count);
        Assert.Equal(data.ValidationSamples.Select(sample => sample.TokenIds), again.TrainSamples.Select(sample => sample.TokenIds));
        Assert.Equal(data.ValidationSamples.Select(sample => sample.Labels), again.TrainSamples.Select(sample => sample.Labels));
    }

    [Fact]
    public void Build_EvalItersMinusOne_IsOnePass()
    {
        var data = DataFolder.Build(DataFolder.Config(Rows("a.jsonl", 40)) with { GlobalBatchSize = 4, EvalIters = -1, ValDataset = [Rows("v.jsonl", 10)] });
        Assert.Equal(3, data.EvalIters);
        var source = data.CreateValidationSource(BatchLayout.SingleRankUnpadded(2));
        Assert.NotNull(source);
        Assert.Equal([4, 4, 2], Enumerable.Range(0, 3).Select(i => source.Get(i).NumSamplesGlobal));
    }

    [Fact]
    public void Build_NoValidationData_HasNoValidationSource()
    {
        var data = DataFolder.Build(DataFolder.Config(Rows("a.jsonl", 4)));
        Assert.Null(data.CreateValidationSource(BatchLayout.SingleRankUnpadded(1)));
        Assert.Equal(0, data.EvalIters);
    }

    [Theory]
    [InlineData("cyclic", 50, null, 50, 50)]
    [InlineData("cyclic", null, 2, 20, 20)]
    [InlineData("cyclic", 50, 2, 50, 20)]
    [InlineData("cyclic", 5, 2, 5, 5)]
    [InlineData("single", 50, null, 50, 10)]
    [InlineData("single", null, null, 10, 10)]
    [InlineData("external", null, 2, 20, 20)]
    public void Build_Lengths_FollowIterationsAndEpochs(string loader, int? iters, int? epochs, long schedule, long last)
    {
        var config = DataFolder.Config(Rows("a.jsonl", 40)) with { GlobalBatchSize = 4, DataloaderType = loader, TrainIters = iters, MaxEpochs = epochs };
        var data = DataFolder.Build(config);
        Assert.Equal(schedule, data.TrainIters);
        Assert.Equal(last, data.LastIteration);
    }

    [Theory]
    [InlineData("binpack")]
    [InlineData("sequential")]
    public void Build_Packing_CountsPacksAndTellsTheLength(string strategy)
    {
        var config = DataFolder.Config(Rows("a.jsonl", 40)) with
        {
            Packing = true, PackingLength = 100, MaxLength = 100, PackingStrategy = strategy, GlobalBatchSize = 4, MicroBatchSize = 2, TrainIters = null, MaxEpochs = 2,
        };
        var data = DataFolder.Build(config);
        var packs = Assert.IsType<PackPlan>(data.TrainPacks);
        Assert.Equal(40, packs.NumSamples);
        Assert.Equal((2 * packs.Count + 3) / 4, data.LastIteration);
        Assert.Contains(data.Report, line => line.StartsWith($"packing: 40 samples in {packs.Count} packs of at most 100 tokens"));
        Assert.Contains(data.Report, line => line.Contains($"max_epochs = 2: {data.LastIteration} iterations"));
        var batch = data.CreateTrainSource(BatchLayout.SingleRankUnpadded(2)).Get(0);
        Assert.Equal((2, 4), (batch.MicroBatches.Count, batch.NumSamplesGlobal));
        Assert.All(batch.MicroBatches, row => Assert.InRange(row.NumTokens, 101, 200));
        Assert.All(batch.MicroBatches, row => Assert.True(row.CuSeqLens.Length > 3));
    }

    [Fact]
    public void Build_FewerPacksThanAGlobalBatch_IsRefused() => AssertRefused("DATA021", "packs are fewer than one global batch of 4",
        DataFolder.Config(Rows("a.jsonl", 8)) with { Packing = true, PackingLength = 500, MaxLength = 500, GlobalBatchSize = 4 });

    [Fact]
    public void Build_FewerSamplesThanAGlobalBatch_IsRefused() =>
        AssertRefused("DATA021", "3 training samples are fewer than one global batch of 4", DataFolder.Config(Rows("a.jsonl", 3)) with { GlobalBatchSize = 4 });

    [Fact]
    public void Build_NoDataset_IsRefused() => AssertRefused("DATA021", "--dataset", DataFolder.Config());

    [Fact]
    public void Build_NoLengthOfTraining_IsRefused() =>
        AssertRefused("DATA024", "train_iters", DataFolder.Config(Rows("a.jsonl", 3)) with { TrainIters = null });

    [Fact]
    public void Build_MoreThanHalfTooLong_IsRefused()
    {
        var config = DataFolder.Config(Rows("a.jsonl", 6)) with { MaxLength = 5 };
        AssertRefused("DATA013", "6 of 6 rows would be left out", config);
    }

    [Fact]
    public void Build_SplitOfChatRows_IsRefused() =>
        AssertRefused("DATA010", "split", DataFolder.Config(Rows("a.jsonl", 3)) with { TruncationStrategy = "split" });

    [Fact]
    public void Build_ColumnsThatAreNoObject_AreRefused() =>
        AssertRefused("DATA010", "columns = [1]", DataFolder.Config(Rows("a.jsonl", 3)) with { Columns = "[1]" });

    [Fact]
    public void Build_TooManyNames_AreRefused() =>
        AssertRefused("DATA010", "model_name has 3 values", DataFolder.Config(Rows("a.jsonl", 3)) with { ModelName = ["a", "b", "c"] });

    [Fact]
    public void Build_ChatRowsAsPlainText_TellsWhatIsLost()
    {
        const string rows = """
            {"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"user","content":"R"},{"role":"assistant","content":"B"}]}
            {"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}
            """;
        var config = DataFolder.Config(_folder.Write("rows.jsonl", rows)) with { UseChatTemplate = false, LossScale = "all" };
        var data = DataFolder.Build(config);
        Assert.Equal("RB<|endoftext|>", new TestTokenizer().Decode(Assert.Single(data.TrainSamples).TokenIds, skipSpecialTokens: false));
        Assert.Contains(data.Report, line => line.Contains("1 rows have several rounds"));
        Assert.Contains(data.Report, line => line.Contains("1 × no place for a system prompt TPL002"));
    }

    [Fact]
    public void SamplePrinter_ChatSample_ShowsTheMask()
    {
        var config = DataFolder.Config(_folder.Write("rows.jsonl", """{"query":"Q","response":"AB"}""")) with { System = "" };
        var lines = SamplePrinter.Print(DataFolder.Build(config).TrainSamples[0], new TestTokenizer()).Split('\n');
        Assert.StartsWith("[INPUT_IDS] [256, 117, 115, 101, 114, 10, 81, 257", lines[0]);
        Assert.Equal("[INPUT] <|im_start|>user", lines[1]);
        Assert.Contains(lines, line => line.StartsWith("[LABELS_IDS] [-100, -100, ") && line.Contains(", 65, 66, 257"));
        Assert.Contains(lines, line => line.StartsWith("[LABELS] [-100 * 19]AB<|im_end|>"));
    }

    [Fact]
    public void TokenLengths_ThreeSamples_AreDescribed()
    {
        var samples = new MemorySamples([Sample(2), Sample(4), Sample(9)]);
        Assert.Equal("Dataset Token Length: 5.000000±2.943920, min=2, max=9, size=3", TokenLengths.Describe(samples));

        static EncodedSample Sample(int length) => new(new int[length], new int[length], lossWeights: null);
    }

    private static ulong PlanHash(TrainingConfig config) => DataFolder.Build(config).CreateTrainSource(BatchLayout.SingleRankUnpadded(1)).PlanHash;

    private static void AssertRefused(string code, string expected, TrainingConfig config)
    {
        var error = Assert.Throws<ConfigException>(() => DataFolder.Build(config)).Errors[0];
        Assert.Equal(code, error.Code);
        Assert.Contains(expected, error.Message);
    }

    private string Rows(string name, int count) => _folder.Write(name, string.Join('\n',
        Enumerable.Range(0, count).Select(i => $$"""{"query":"question-","response":"{{name[0]}}{{i}}"}""")));
}
