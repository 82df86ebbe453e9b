using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Moe;

/// <summary>Both backward halves of a layer with experts against autograd, in double precision, on random shapes and packed rows.</summary>
[Collection<Alone>] // the global generator gives the same weights again only while no other test draws from it
public sealed class MoeLayerTests(ITestOutputHelper output)
{
    private const double AuxiliaryFactor = 0.6;

    /// <summary>Routing variants, in words that <see cref="Configure"/> knows.</summary>
    public static TheoryData<string> Variants =>
    [
        "post", "pre", "post aux", "pre aux", "post seq", "pre seq", "post z", "pre z aux", "post seq z shared", "pre aux shared", "post idle", "pre aux z idle shared",
        "post top1", "pre all aux",
    ];

    /// <summary>Rows: packed, one segment, with padding at the end, with fewer tokens than experts, nothing but padding.</summary>
    private static readonly (int[] Segments, int Padding)[] rows = [([5, 7, 1], 0), ([11], 0), ([4, 9], 3), ([2], 5), ([], 4)];

    [Theory, MemberData(nameof(Variants))]
    public void MoeLayer_Variant_MatchesIsland(string variant)
    {
        using var leaks = LeakCheck.Start();
        var random = NewRandom();
        foreach (var recompute in RecomputeModes)
            foreach (var (segments, padding) in rows)
            {
                using var scope = NewDisposeScope();
                var (config, options) = Configure(variant, random);
                using var bench = new Bench(config, options, recompute);
                var batch = TestBatches.Random(random, config.VocabSize, segments, padding);
                var x = randn(batch.NumTokens, config.HiddenSize, ScalarType.Float64);
                if (variant.Contains("idle", StringComparison.Ordinal)) bench.SendNothingToExpert(1, x);
                bench.Check(x, batch, batch.NumTokens - padding);
                if (variant.Contains("idle", StringComparison.Ordinal)) Assert.Equal(0, bench.Statistics.TokensPerExpert[1, 1].item<long>());
            }
    }

    [Fact]
    public void MoeLayer_SamplesPaddedOneByOne_LeavesTheirPaddingOut()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var random = NewRandom();
        var (config, options) = Configure("post seq z shared", random);
        using var bench = new Bench(config, options, RecomputeOptions.Off);
        var batch = TestBatches.Random(random, config.VocabSize, [6, 8], numPaddingTokens: 2) with { SegmentPadding = [1, 3, 0] };
        bench.Check(randn(batch.NumTokens, config.HiddenSize, ScalarType.Float64), batch, numRealTokens: 10);
    }

    [Fact]
    public void BalanceLoss_EvenRouting_IsOne()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var (config, options) = Configure("post aux", NewRandom());
        config = config with { HiddenSize = 4, Moe = Experts(config) with { NumExperts = 4, TopK = 1 } };
        using var bench = new Bench(config, options, RecomputeOptions.Off);
        bench.Layer.Parameters[0].Data.copy_(eye(4, dtype: ScalarType.Float64));
        var batch = TestBatches.Random(new Random(1), config.VocabSize, [8]);
        using var context = new ForwardContext(batch, CPU, step: 0, isTraining: true, lossFactor: 1, AuxiliaryFactor);
        using var gradients = TestModels.AttachGradients(bench.Layer.Parameters);
        using var saved = new Saved(context);
        var result = bench.Layer.Forward(eye(4, dtype: ScalarType.Float64).repeat(2, 1), saved);
        bench.Layer.BackwardInput(zeros_like(result), saved);
        bench.Layer.BackwardWeight(saved);
        Assert.Equal(1.0, bench.Statistics.BalanceLoss[1].item<double>(), 12);
        Assert.Equal([2L, 2, 2, 2], bench.Statistics.TokensPerExpert[1].data<long>().ToArray());
    }

    [Theory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void TransformerLayer_EveryRecomputeModule_SameBits(ScalarType dtype)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        var (config, options) = Configure("pre aux z shared", NewRandom());
        var batch = TestBatches.Random(new Random(3), config.VocabSize, [9, 4], numPaddingTokens: 3);
        using var context = new ForwardContext(batch, CPU, step: 0, isTraining: true, lossFactor: 1, AuxiliaryFactor);
        var x = randn(batch.NumTokens, config.HiddenSize).to_type(dtype);
        Tensor[]? expected = null;
        var keptWithout = 0L;
        foreach (var recompute in RecomputeModes)
        {
            manual_seed(4);
            using var bench = new Bench(config, options, recompute, dtype);
            using var gradients = TestModels.AttachGradients(bench.Block.Parameters);
            using var saved = new Saved(context);
            var result = bench.Block.Forward(x, saved);
            var keptBytes = saved.SizeBytes;
            var gradInput = bench.Block.BackwardInput(ones_like(result), saved);
            bench.Block.BackwardWeight(saved);
            Assert.Equal(0, saved.SizeBytes);
            Tensor[] results =
            [
                result, gradInput, bench.Statistics.BalanceLoss.clone(), bench.Statistics.ZLoss.clone(), bench.Statistics.TokensPerExpert.clone(),
                .. bench.Block.Parameters.Select(parameter => parameter.MainGrad.clone()),
            ];
            if (expected is null) (expected, keptWithout) = (results, keptBytes);
            else Assert.True(keptBytes < keptWithout, $"{recompute} keeps {keptBytes} of {keptWithout} bytes");
            for (var i = 0; i < results.Length; i++) Assert.True(results[i].eq(expected[i]).all().item<bool>(), $"{recompute}: result {i} differs");
        }
    }

    private static IReadOnlyList<RecomputeOptions> RecomputeModes { get; } =
    [
        RecomputeOptions.Off,
        .. new[] { RecomputeModules.Moe, RecomputeModules.MoeActivation, RecomputeModules.LayerNorm, RecomputeModules.Moe | RecomputeModules.LayerNorm }
            .Select(modules => new RecomputeOptions { Granularity = RecomputeGranularity.Selective, Modules = modules }),
    ];

    private static MoeConfig Experts(ModelConfig config) => config.Moe ?? throw new InvalidOperationException("no experts");

    private static (ModelConfig, MoeOptions) Configure(string variant, Random random)
    {
        var words = variant.Split(' ');
        var experts = 3 + random.Next(6);
        var moe = new MoeConfig
        {
            NumExperts = experts,
            FfnHiddenSize = 4 + random.Next(8),
            TopK = words.Contains("top1") ? 1 : words.Contains("all") ? experts : 2 + random.Next(experts - 2),
            PreSoftmax = words.Contains("pre"),
            SharedExpertFfnHiddenSize = words.Contains("shared") ? 5 + random.Next(6) : null,
        };
        var options = new MoeOptions
        {
            LoadBalancing = words.Contains("aux") ? LoadBalancing.AuxiliaryLoss : words.Contains("seq") ? LoadBalancing.SequenceAuxiliaryLoss : LoadBalancing.None,
            AuxLossCoeff = 0.7,
            ZLossCoeff = words.Contains("z") ? 0.3 : 0,
            RouterDtype = ScalarType.Float32,
        };
        return (TestModels.Config with { HiddenSize = 6 + random.Next(8), Moe = moe }, options);
    }

    private Random NewRandom()
    {
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        manual_seed(seed);
        return new Random(seed);
    }

    /// <summary>A layer with random weights, alone and inside its block.</summary>
    private sealed class Bench : IDisposable
    {
        private readonly RotaryEmbedding rotary;
        private readonly ModelConfig config;
        private readonly MoeOptions options;

        public RoutingStatistics Statistics { get; }

        /// <summary>The second layer of the model.</summary>
        public TransformerLayer Block { get; }

        /// <summary>Router and experts alone.</summary>
        public ILayer Layer { get; }

        public Bench(ModelConfig config, MoeOptions options, RecomputeOptions recompute, ScalarType dtype = ScalarType.Float64)
        {
            (this.config, this.options) = (config, options);
            var parallel = ParallelState.SingleRank();
            rotary = new RotaryEmbedding(config.Rotary, config.KvChannels, config.MaxPositionEmbeddings, dtype, CPU);
            Statistics = new RoutingStatistics(config.NumLayers, Experts(config).NumExperts, CPU);
            var context = new LayerContext
            {
                Config = config, Parallel = parallel, Region = new SequenceParallelRegion(parallel.TensorParallel, false), Rotary = rotary,
                Weights = new ParameterFactory(dtype, CPU), Attention = TestModels.Auto, Products = ProductOptions.Default, Recompute = recompute, Seed = 1, Moe = options, Routing = Statistics,
            };
            Block = new TransformerLayer(context, "layer", layerIndex: 1);
            foreach (var parameter in Block.Parameters) parameter.Data.normal_(0, 0.5);
            var moe = MoeBlock.Create(context, Experts(config), "layer.mlp", layerIndex: 1);
            foreach (var parameter in moe.Parameters) parameter.Data.normal_(0, 0.5);
            Layer = recompute.Covers(RecomputeModules.Moe) ? new CheckpointedBlock(moe) : moe;
        }

        /// <summary>Makes the first channel of every token 1, and the expert's gate reject that.</summary>
        public void SendNothingToExpert(int expert, Tensor x)
        {
            x.narrow(1, 0, 1).fill_(1);
            var gate = Layer.Parameters[0].Data[expert];
            gate.zero_();
            gate[0] = -50;
        }

        /// <summary>Output, all gradients and what is reported, against <see cref="ReferenceMoe"/>.</summary>
        public void Check(Tensor x, MicroBatch batch, int numRealTokens)
        {
            using var context = new ForwardContext(batch, CPU, step: 0, isTraining: true, lossFactor: 1, AuxiliaryFactor);
            var oracle = new ReferenceMoe(config, options);
            var projection = randn_like(x);
            LayerCheck.EqualsIsland(new ProjectedLayer(Layer, projection), (input, weights, ctx) => oracle.Projected(input, weights, ctx, projection), x, context);
            Assert.Equal((long)numRealTokens * Experts(config).TopK, Statistics.TokensPerExpert.sum().item<long>());
            Assert.Equal(oracle.BalanceLoss, Statistics.BalanceLoss.sum().item<double>(), 1e-9);
            Assert.Equal(oracle.ZLoss, Statistics.ZLoss.sum().item<double>(), 1e-9);
        }

        public void Dispose()
        {
            foreach (var parameter in Block.Parameters.Concat(Layer.Parameters)) parameter.Dispose();
            Statistics.Dispose();
            rotary.Dispose();
        }
    }
}
