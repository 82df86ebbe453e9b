using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Inference;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.Tokenization;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Inference;

/// <summary>Generation against the published greedy continuation, and against itself without cache and in a batch.</summary>
public sealed class TextGeneratorTests
{
    private const int PromptLength = 16;

    private static readonly HfTokenizer Tokenizer = HfTokenizer.Load(Repository.Asset("tokenizers", "tiny"));

    public static TheoryData<string> Models => ["qwen2.5-dense", "qwen3-dense", "llama3.1-dense", "qwen2-moe", "qwen3-moe"];

    [Theory, MemberData(nameof(Models))]
    public void Generate_GoldenModelGreedy_EqualsHuggingFaceAndItselfWithoutCache(string name)
    {
        using var leaks = LeakCheck.Start();
        using var model = Load(name, out var golden);
        var result = Run(model, [golden[..PromptLength]], golden.Length - PromptLength)[0];
        Assert.Equal(golden[PromptLength..], result.TokenIds);
        Assert.Equal(WithoutCache(model, golden[..PromptLength], golden.Length - PromptLength), result.TokenIds);
        Assert.Equal(FinishReason.Length, result.Finish);
        Assert.Equal((PromptLength, golden.Length - PromptLength), (result.NumPromptTokens, result.NumGeneratedTokens));
    }

    [Theory, MemberData(nameof(Models))]
    public void Generate_SeveralPromptsOfDifferentLength_EachEqualsItsOwn(string name)
    {
        using var leaks = LeakCheck.Start();
        using var model = Load(name, out var golden);
        int[][] prompts = [golden[..PromptLength], golden[3..8], golden[..1], golden[5..30], golden[3..8]];
        var batch = Run(model, prompts, 24);
        for (var i = 0; i < prompts.Length; i++)
        {
            Assert.Equal(Run(model, [prompts[i]], 24)[0].TokenIds, batch[i].TokenIds);
            Assert.Equal(WithoutCache(model, prompts[i], 24), batch[i].TokenIds);
        }
    }

    [Fact]
    public void Generate_Sampling_DependsOnSeedAndSequenceOnly()
    {
        using var leaks = LeakCheck.Start();
        using var model = Load("qwen3-dense", out var golden);
        var sampling = new SamplingOptions { Temperature = 1.5, TopK = 0, TopP = 0.95, RepetitionPenalty = 1.1 };
        GenerationRequest Request(long sequence) => new() { PromptIds = golden[..PromptLength], Sampling = sampling, MaxNewTokens = 20, Sequence = sequence };
        var generator = new TextGenerator(model, Tokenizer, StopRules.None, seed: 5);
        var batch = generator.Generate([Request(0), Request(1), Request(2)], null, TestContext.Current.CancellationToken);
        Assert.NotEqual(batch[0].TokenIds, batch[1].TokenIds);
        Assert.Equal(batch[1].TokenIds, generator.Generate([Request(1)], null, TestContext.Current.CancellationToken)[0].TokenIds);
        var other = new TextGenerator(model, Tokenizer, StopRules.None, seed: 6);
        Assert.NotEqual(batch[1].TokenIds, other.Generate([Request(1)], null, TestContext.Current.CancellationToken)[0].TokenIds);
    }

    [Fact]
    public void Generate_StopToken_EndsThatAnswerOnlyAndIsNoPartOfIt()
    {
        using var leaks = LeakCheck.Start();
        using var model = Load("qwen3-dense", out var golden);
        var stop = golden[PromptLength + 4];
        var first = Array.IndexOf(golden, stop, PromptLength) - PromptLength;
        var stops = StopRules.None with { Ids = new HashSet<int> { stop } };
        var results = Run(model, [golden[..PromptLength], golden[..(PromptLength - 1)]], 24, stops);
        Assert.Equal(golden[PromptLength..(PromptLength + first)], results[0].TokenIds);
        Assert.Equal((FinishReason.Stop, first + 1), (results[0].Finish, results[0].NumGeneratedTokens));
        Assert.DoesNotContain(stop, results[1].TokenIds);
    }

    [Fact]
    public void Generate_UpToTheLastPosition_EndsThere()
    {
        using var leaks = LeakCheck.Start();
        var config = TestModels.Config with { MaxPositionEmbeddings = 20 };
        using var model = TestModels.Whole(config, TestModels.Options(ScalarType.Float32));
        ModelInitializer.Initialize(model.Parameters, config, seed: 1);
        Assert.Equal(13, Run(model, [[1, 2, 3, 4, 5, 6, 7]], 1000)[0].NumGeneratedTokens);
        var error = Assert.Throws<ConfigException>(() => Run(model, [[.. Enumerable.Range(0, 20)]], 5));
        Assert.Equal("MODEL022", Assert.Single(error.Errors).Code);
        Assert.Throws<ConfigException>(() => Run(model, [[]], 5));
    }

    [Fact]
    public void Generate_Streaming_PiecesJoinToTheText()
    {
        using var leaks = LeakCheck.Start();
        using var model = Load("qwen3-dense", out var golden);
        var pieces = new string[2];
        var requests = new[] { golden[..PromptLength], golden[2..9] }
            .Select((ids, i) => new GenerationRequest { PromptIds = ids, Sampling = SamplingOptions.Greedy, MaxNewTokens = 24, Sequence = i, Beginning = "so: " });
        var results = new TextGenerator(model, Tokenizer, StopRules.None, seed: 0)
            .Generate([.. requests], (i, text) => pieces[i] += text, TestContext.Current.CancellationToken);
        Assert.Equal(results.Select(result => result.Text), pieces);
        Assert.StartsWith("so: ", pieces[0], StringComparison.Ordinal);
        Assert.Equal("so: " + Tokenizer.Decode(results[0].TokenIds.ToArray(), skipSpecialTokens: false), pieces[0]);
    }

    [Theory]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.Float64)]
    public void KvCache_AnyDtype_AttendsLikeTheWholeRow(ScalarType dtype)
    {
        using var leaks = LeakCheck.Start();
        using var model = TestModels.Whole(TestModels.Config with { QkLayerNorm = true, AddQkvBias = true }, TestModels.Options(dtype));
        ModelInitializer.Initialize(model.Parameters, model.Config, seed: 3);
        int[] ids = [5, 9, 2, 2, 40, 7, 13, 1, 30, 8];
        using var scope = NewDisposeScope();
        using var cache = new KvCache(model.Config.NumLayers, model.Config.MaxPositionEmbeddings);
        var tolerance = dtype == ScalarType.Float64 ? 1e-12 : 0.05; // 16-bit: another order of rounding
        foreach (var (start, end) in ((int, int)[])[(0, 4), (4, 5), (5, 9), (9, 10)])
        {
            var row = new CachedRow([cache], [ids[start..end]]);
            using var context = Context(row.ToMicroBatch(), row);
            var logits = model.ForwardLastLogits(new Saved(context));
            row.Advance();
            var whole = new CachedRow([new KvCache(2, 64)], [ids[..end]]);
            using var plain = Context(whole.ToMicroBatch(), null);
            var difference = (logits - model.ForwardLastLogits(new Saved(plain))).abs().max().to_type(ScalarType.Float64).item<double>();
            Assert.True(difference <= tolerance, $"tokens {start} to {end}: {difference}");
        }
        Assert.Equal(10, cache.Length);
    }

    private static ForwardContext Context(MicroBatch batch, IAttentionCache? cache) =>
        new(batch, CPU, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0) { AttentionCache = cache };

    private static IReadOnlyList<GenerationResult> Run(GptModel model, int[][] prompts, int maxNewTokens, StopRules? stops = null) =>
        new TextGenerator(model, Tokenizer, stops ?? StopRules.None, seed: 0).Generate(
            [.. prompts.Select((ids, i) => new GenerationRequest { PromptIds = ids, Sampling = SamplingOptions.Greedy, MaxNewTokens = maxNewTokens, Sequence = i })],
            null, TestContext.Current.CancellationToken);

    /// <summary>The oracle: the whole sequence anew for each token.</summary>
    private static List<int> WithoutCache(GptModel model, int[] prompt, int count)
    {
        var ids = prompt.ToList();
        for (var i = 0; i < count; i++)
        {
            using var scope = NewDisposeScope();
            var row = new CachedRow([new KvCache(0, 0)], [[.. ids]]).ToMicroBatch();
            using var context = Context(row, null);
            ids.Add((int)model.ForwardLogits(null, new Saved(context))[-1].argmax().item<long>());
        }
        return ids[prompt.Length..];
    }

    private static GptModel Load(string name, out int[] greedy)
    {
        var folder = Repository.Asset("golden", name);
        var model = TestModels.Whole(HfConfigReader.ReadFolder(folder).Model, TestModels.Options(ScalarType.Float32));
        ModelWeights.Load(model, folder);
        using var results = SafetensorsFile.Open(Path.Combine(folder, "golden.safetensors"));
        using var ids = results.ReadTensor("greedy.ids");
        greedy = [.. ids.data<long>().ToArray().Select(id => (int)id)];
        return model;
    }
}
