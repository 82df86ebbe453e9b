using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using Megatron.Compute.Transformer;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Transformer;

/// <summary>Both backward halves of every layer against autograd, in double precision, on random shapes and packed rows.</summary>
public sealed class LayerGradientTests(ITestOutputHelper output)
{
    private const long DropoutSeed = 77;

    /// <summary>Architectural variants: heads, groups, bias, q/k norm, dropout, tied head.</summary>
    public static TheoryData<string> Variants => ["mha", "gqa", "mqa", "bias", "qk-norm", "dropout", "tied", "yarn"];

    /// <summary>Rows: equal segments, one segment, mixed lengths, mixed with padding.</summary>
    private static readonly (int[] Segments, int Padding)[] rows = [([6, 6, 6], 0), ([13], 0), ([3, 7, 7, 1, 5], 0), ([4, 9], 3)];

    [Fact]
    public void RmsNormLayer_RandomRows_MatchesIsland()
    {
        using var leaks = LeakCheck.Start();
        using var bench = new Bench("gqa", output);
        bench.ForEachRow((context, x) =>
        {
            using var weight = bench.Vector("norm.weight", bench.Config.HiddenSize);
            LayerCheck.EqualsIsland(new RmsNormLayer(weight, 1e-6), (input, weights, ctx) => bench.Reference(ctx).Norm(input, weights[0]), x, context);
        });
    }

    [Fact]
    public void LinearLayers_RandomRows_MatchIsland()
    {
        using var leaks = LeakCheck.Start();
        using var bench = new Bench("bias", output);
        bench.ForEachRow((context, x) =>
        {
            var width = bench.Config.HiddenSize;
            using var weight = bench.Matrix("weight", 10, width);
            using var bias = bench.Vector("bias", 10);
            var region = new SequenceParallelRegion(new SingleRankGroup("tp"), sequenceParallel: true);
            LayerCheck.EqualsIsland(new ColumnParallelLinear(weight, bias, region, ProductOptions.Default), (input, w, _) => nn.functional.linear(input, w[0], w[1]), x, context);
            LayerCheck.EqualsIsland(new RowParallelLinear(weight, region, ProductOptions.Default), (input, w, _) => nn.functional.linear(input, w[0]), x, context);
        });
    }

    [Theory, MemberData(nameof(Variants))]
    public void SelfAttention_Variant_MatchesIsland(string variant)
    {
        using var leaks = LeakCheck.Start();
        using var bench = new Bench(variant, output);
        foreach (var options in (AttentionOptions[])[TestModels.Unfused, TestModels.Auto, TestModels.Unfused with { QueryKeyLayerScaling = true }])
            bench.ForEachRow((context, x) =>
            {
                var layer = bench.Own(new SelfAttention(bench.Layers(RecomputeOptions.Off, options), "self_attn", layerIndex: 1));
                LayerCheck.EqualsIsland(layer, (input, weights, ctx) => bench.Reference(ctx).Attention(input, new Queue<Tensor>(weights), 1), x, context);
            });
    }

    [Theory, MemberData(nameof(Variants))]
    public void TransformerLayer_Variant_MatchesIsland(string variant)
    {
        using var leaks = LeakCheck.Start();
        using var bench = new Bench(variant, output);
        foreach (var recompute in RecomputeTests.Modes)
            bench.ForEachRow((context, x) =>
            {
                var layer = bench.Own(new TransformerLayer(bench.Layers(recompute, TestModels.Auto), "layer", layerIndex: 1));
                LayerCheck.EqualsIsland(layer, (input, weights, ctx) => bench.Reference(ctx).Layer(input, new Queue<Tensor>(weights), 1), x, context);
            });
    }

    [Theory, MemberData(nameof(Variants))]
    public void GptModel_Variant_MatchesIsland(string variant)
    {
        using var leaks = LeakCheck.Start();
        using var bench = new Bench(variant, output);
        foreach (var chunk in (int[])[1000, 4])
            bench.ForEachRow((context, _) =>
            {
                using var model = TestModels.Whole(
                    bench.Config, TestModels.Options(ScalarType.Float64) with { Seed = DropoutSeed, HeadChunkTokens = chunk });
                bench.Randomize(model.Parameters);
                LayerCheck.EqualsIsland(new WholeModel(model), (_, weights, ctx) => bench.Reference(ctx).Loss(weights), context.TokenIds, context);
            });
    }

    /// <summary>A model as a layer from tokens to its loss.</summary>
    private sealed class WholeModel(GptModel model) : ILayer
    {
        public IReadOnlyList<Parameter> Parameters => model.Parameters;

        public Tensor Forward(Tensor x, Saved saved) => model.ForwardStage(null, saved);

        public Tensor BackwardInput(Tensor gradOutput, Saved saved)
        {
            Assert.Null(model.BackwardInput(null, saved));
            return gradOutput.alias();
        }

        public void BackwardWeight(Saved saved) => model.BackwardWeight(saved);
    }

    /// <summary>One variant with its random numbers, contexts and layers.</summary>
    private sealed class Bench : IDisposable
    {
        private readonly Random random;
        private readonly RotaryEmbedding rotary;
        private readonly ParallelState parallel = ParallelState.SingleRank();
        private readonly List<Parameter> owned = [];

        public ModelConfig Config { get; }

        public Bench(string variant, ITestOutputHelper output)
        {
            var seed = Environment.TickCount;
            output.WriteLine($"seed {seed}");
            random = new Random(seed);
            manual_seed(seed);
            var groups = 1 + random.Next(2);
            var config = TestModels.Config with
            {
                NumQueryGroups = groups, NumAttentionHeads = groups * (2 + random.Next(2)), KvChannels = 2 * (2 + random.Next(4)),
                HiddenSize = 8 + random.Next(16), FfnHiddenSize = 8 + random.Next(24), VocabSize = 20 + random.Next(30),
            };
            Config = variant switch
            {
                "mha" => config with { NumQueryGroups = config.NumAttentionHeads },
                "gqa" => config with { NumQueryGroups = 2, NumAttentionHeads = 6 },
                "mqa" => config with { NumQueryGroups = 1 },
                "bias" => config with { AddQkvBias = true },
                "qk-norm" => config with { QkLayerNorm = true },
                "dropout" => config with { AttentionDropout = 0.2, HiddenDropout = 0.3, QkLayerNorm = true },
                "tied" => config with { TieWordEmbeddings = true },
                "yarn" => config with { Rotary = config.Rotary with { ScalingType = "yarn", Factor = 4, OriginalMaxPositionEmbeddings = 16 } },
                _ => throw new ArgumentOutOfRangeException(nameof(variant)),
            };
            rotary = new RotaryEmbedding(Config.Rotary, Config.KvChannels, Config.MaxPositionEmbeddings, ScalarType.Float64, CPU);
        }

        public ReferenceTransformer Reference(ForwardContext context) => new(Config, context, DropoutSeed);

        public void ForEachRow(Action<ForwardContext, Tensor> check)
        {
            foreach (var (segments, padding) in rows)
            {
                using var scope = NewDisposeScope();
                var batch = TestBatches.Random(random, Config.VocabSize, segments, padding);
                using var context = new ForwardContext(batch, CPU, step: 3, isTraining: true, lossFactor: 0.37, auxiliaryLossFactor: 1);
                check(context, randn(batch.NumTokens, Config.HiddenSize, ScalarType.Float64));
            }
        }

        public LayerContext Layers(RecomputeOptions recompute, AttentionOptions attention) => new()
        {
            Config = Config, Parallel = parallel, Region = new SequenceParallelRegion(parallel.TensorParallel, false), Rotary = rotary,
            Weights = new ParameterFactory(ScalarType.Float64, CPU), Attention = attention, Products = ProductOptions.Default, Recompute = recompute, Seed = DropoutSeed,
            Moe = MoeOptions.Plain, Routing = null,
        };

        public T Own<T>(T layer) where T : ILayer
        {
            Randomize(layer.Parameters);
            owned.AddRange(layer.Parameters);
            return layer;
        }

        public Parameter Vector(string name, int length) => Randomized(new Parameter(
            name, empty([length], ScalarType.Float64), [TensorBlock.Whole(name, length)], new ParameterTraits { Decays = false }));

        public Parameter Matrix(string name, int rows, int columns) => Randomized(new Parameter(
            name, empty([rows, columns], ScalarType.Float64), [TensorBlock.Whole(name, rows, columns)], new ParameterTraits { Decays = true }));

        public void Randomize(IReadOnlyList<Parameter> parameters)
        {
            foreach (var parameter in parameters) Randomized(parameter);
        }

        public void Dispose()
        {
            foreach (var parameter in owned) parameter.Dispose();
            rotary.Dispose();
        }

        private static Parameter Randomized(Parameter parameter)
        {
            parameter.Data.normal_(0, 0.4);
            if (parameter.Name.EndsWith("norm.weight", StringComparison.Ordinal)) parameter.Data.add_(1);
            return parameter;
        }
    }
}
