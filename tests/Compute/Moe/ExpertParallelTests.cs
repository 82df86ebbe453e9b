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

/// <summary>
/// A layer with experts whose tokens, experts and matrices lie on several ranks against the same layer on one rank: output, every gradient,
/// what is reported and what is sent, in double precision and on packed rows of different lengths.
/// </summary>
public sealed class ExpertParallelTests(ITestOutputHelper output)
{
    private const double AuxiliaryFactor = 0.6;

    /// <summary>Ranks, tp, sequence parallelism, ep, etp (0: follows tp), cp.</summary>
    private static readonly Layout[] layouts =
    [
        new(2, 1, false, 2, 0), new(4, 1, false, 4, 0), new(4, 1, false, 2, 0), new(2, 2, false, 1, 0), new(2, 2, true, 1, 0), new(4, 4, true, 1, 0),
        new(4, 2, false, 2, 0), new(4, 2, true, 2, 0), new(2, 2, true, 2, 1), new(2, 2, false, 2, 1), new(4, 2, true, 4, 1), new(4, 1, false, 2, 2),
        new(8, 2, true, 2, 0), new(4, 2, true, 1, 4), new(2, 1, false, 1, 0, 2), new(4, 1, false, 2, 0, 2), new(8, 2, true, 4, 1, 2), new(4, 2, false, 2, 0, 2),
    ];

    /// <summary>Routings, in words that <see cref="Case"/> knows.</summary>
    public static TheoryData<string> Routings => ["post", "pre aux shared", "post seq z", "pre seq z shared", "one aux", "idle post aux", "pre z shared overlap", "empty post aux z shared", "short pre aux"];

    [Theory, MemberData(nameof(Routings))]
    public void MoeLayer_EveryLayout_EqualsOneRank(string routing)
    {
        var seed = Environment.TickCount;
        foreach (var layout in layouts)
        {
            output.WriteLine($"seed {seed}, {layout}");
            using var test = new Case(routing, layout, new Random(seed));
            test.Compare(RecomputeOptions.Off);
        }
    }

    [Theory]
    [InlineData(RecomputeModules.Moe)]
    [InlineData(RecomputeModules.MoeActivation)]
    public void MoeLayer_Recompute_EqualsOneRank(RecomputeModules modules)
    {
        using var test = new Case("pre aux shared", new Layout(4, 2, true, 2, 0), new Random(5));
        test.Compare(new RecomputeOptions { Granularity = RecomputeGranularity.Selective, Modules = modules });
    }

    [Fact]
    public void MoeLayer_RunTwice_SameBits()
    {
        using var test = new Case("post aux z shared", new Layout(8, 2, true, 2, 0), new Random(6));
        var (first, second) = (test.Run(RecomputeOptions.Off), test.Run(RecomputeOptions.Off));
        for (var rank = 0; rank < first.Length; rank++)
        {
            foreach (var (name, values) in first[rank].Values) Assert.Equal(values, second[rank].Values[name]);
            for (var i = 0; i < first[rank].Gradients.Count; i++) Assert.Equal(first[rank].Gradients[i].Values, second[rank].Gradients[i].Values);
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void MoeLayer_SharedExpertOverlap_RunsTheSharedExpertWhileTokensTravel(bool overlaps)
    {
        using var test = new Case(overlaps ? "pre shared overlap" : "pre shared", new Layout(4, 2, true, 2, 0), new Random(7));
        var events = Enumerable.Range(0, 4).Select(_ => new List<string>()).ToArray();
        test.Run(RecomputeOptions.Off, events);
        foreach (var ofRank in events)
        {
            // Over ep: the plan, rows, weights. What arrived goes on over etp. The shared expert gathers its tokens over tp.
            var (arrived, gathered) = (ofRank.IndexOf("etp all_to_all"), ofRank.IndexOf("tp all_gather"));
            Assert.Equal(3, ofRank.Take(Math.Min(arrived, gathered)).Count(line => line == "ep all_to_all"));
            Assert.Equal(overlaps, gathered < arrived);
        }
    }

    private sealed record Layout(int Ranks, int Tp, bool SequenceParallel, int Ep, int Etp, int Cp = 1)
    {
        public ParallelDims Dims => new(Ranks, Tp, 1, Cp, Ep, Etp == 0 ? null : Etp);

        public ContextSplit SplitOf(int rank) => new(Dims.DenseOf(rank).Cp, Cp);
    }

    /// <summary>What a rank (or the single one) computed: by name, and the reduced gradient of each of its blocks.</summary>
    private sealed record Result(Dictionary<string, double[]> Values, List<(TensorBlock Block, double[] Values)> Gradients, (long Ep, long Etp) SentBytes);

    /// <summary>A layer, its weights as whole tensors, and one row of tokens for each data-parallel rank.</summary>
    private sealed class Case : IDisposable
    {
        private readonly ModelConfig config;
        private readonly MoeConfig moe;
        private readonly MoeOptions options;
        private readonly Layout layout;
        private readonly Dictionary<string, Tensor> whole = new(StringComparer.Ordinal);
        private readonly List<(MicroBatch Batch, Tensor X, Tensor GradOutput)> rows = [];

        public Case(string routing, Layout layout, Random random)
        {
            this.layout = layout;
            var words = routing.Split(' ');
            moe = new MoeConfig
            {
                NumExperts = 8, FfnHiddenSize = 12, TopK = words.Contains("one") ? 1 : 3, PreSoftmax = words.Contains("pre"),
                SharedExpertFfnHiddenSize = words.Contains("shared") ? 16 : null,
            };
            options = new MoeOptions
            {
                LoadBalancing = words.Contains("aux") ? LoadBalancing.AuxiliaryLoss : words.Contains("seq") ? LoadBalancing.SequenceAuxiliaryLoss : LoadBalancing.None,
                AuxLossCoeff = 0.7, ZLossCoeff = words.Contains("z") ? 0.3 : 0, RouterDtype = ScalarType.Float32,
                OverlapSharedExpert = words.Contains("overlap"),
            };
            config = TestModels.Config with { HiddenSize = 10, Moe = moe };
            using (var layer = Build(ParallelState.SingleRank(), RecomputeOptions.Off))
                foreach (var block in layer.Value.Parameters.SelectMany(parameter => parameter.Blocks)) whole[block.Name] = Draw(random, block.GlobalShape);
            Steer(words);
            for (var dp = 0; dp < layout.Dims.DataParallelSize; dp++)
            {
                // Rows are multiples of 4, so that every layout splits them evenly under sequence parallelism; with cp 2 so are segments.
                var (segments, padding) = words.Contains("empty") && dp % 2 == 0 ? (Array.Empty<int>(), 8)
                    : words.Contains("short") && !layout.SequenceParallel && layout.Cp == 1 ? ([1], 0)
                    : layout.Cp == 1 ? (new[] { 5, 6, 2 + 4 * dp }, 3) : ([8, 4, 4 + 8 * dp], 8);
                var batch = TestBatches.Random(random, config.VocabSize, segments, padding);
                if (layout.Cp > 1) batch = batch with { SegmentPadding = [.. segments.Select((_, i) => i), 0] };
                var x = Draw(random, batch.NumTokens, config.HiddenSize);
                using (var first = x.narrow(1, 0, 1)) first.fill_(1);
                rows.Add((batch, x, Draw(random, batch.NumTokens, config.HiddenSize)));
            }
        }

        /// <summary>Runs the layout and one rank, and compares.</summary>
        public void Compare(RecomputeOptions recompute)
        {
            using var scope = NewDisposeScope();
            var actual = Run(recompute);
            var alone = rows.Select((_, dp) => RunRank(ParallelState.SingleRank(), RecomputeOptions.Off, dp)).ToArray();
            for (var rank = 0; rank < layout.Ranks; rank++)
            {
                var dp = layout.Dims.DenseOf(rank).Dp;
                var tokens = TokensOf(layout.SplitOf(rank), rows[dp].Batch);
                foreach (var name in (string[])["output", "input gradient"])
                    AssertClose(
                        $"{name} of rank {rank}", [.. tokens.SelectMany(token => alone[dp].Values[name].AsSpan(token * config.HiddenSize, config.HiddenSize).ToArray())],
                        actual[rank].Values[name]);
                foreach (var name in (string[])["balance", "z", "load"]) AssertClose(name, Sum(alone.Select(row => row.Values[name])), actual[rank].Values[name]);
                foreach (var (block, values) in actual[rank].Gradients)
                {
                    var wholeGradient = tensor(Sum(alone.Select(row => row.Gradients.Single(entry => entry.Block.Name == block.Name).Values)), block.GlobalShape);
                    AssertClose($"{block.Name} on rank {rank}", Numbers(Slice(wholeGradient, block)), values);
                }
            }
            AssertSent(actual, numForwards: recompute.Covers(RecomputeModules.Moe) ? 2 : 1);
        }

        /// <summary>Forward, backward and the reductions of the optimizer on every rank.</summary>
        /// <param name="events">For each rank: gets what is started, group and operation.</param>
        public Result[] Run(RecomputeOptions recompute, List<string>[]? events = null)
        {
            var results = new Result[layout.Ranks];
            var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
            RankThreads.Run(layout.Ranks, rank =>
            {
                using var leaks = LeakCheck.Start();
                using var parallel = ParallelState.Create(layout.Dims, rank, events is null ? world : new ObservedWorld(world, started => events[rank].Add($"{started.Group} {started.Operation}")), layout.SequenceParallel);
                results[rank] = RunRank(parallel, recompute, layout.Dims.DenseOf(rank).Dp);
            }, failure => world.Abort(failure.Message));
            return results;
        }

        public void Dispose()
        {
            foreach (var tensor in whole.Values) tensor.Dispose();
            foreach (var (_, x, gradOutput) in rows)
            {
                x.Dispose();
                gradOutput.Dispose();
            }
        }

        private Result RunRank(ParallelState parallel, RecomputeOptions recompute, int dp)
        {
            using var scope = NewDisposeScope();
            using var built = Build(parallel, recompute);
            var layer = built.Value;
            foreach (var parameter in layer.Parameters) Fill(parameter);
            using var gradients = TestModels.AttachGradients(layer.Parameters);
            var (row, x, gradOutput) = rows[dp];
            var split = new ContextSplit(parallel.ContextParallel.Rank, parallel.ContextParallel.Size);
            using var context = new ForwardContext(split.Take(row), CPU, step: 0, isTraining: true, lossFactor: 1, AuxiliaryFactor);
            using var saved = new Saved(context);
            foreach (var group in (ProcessGroup[])[parallel.ExpertParallel, parallel.ExpertTensorParallel]) group.Volume.Reset();

            var (tp, isSplit) = (parallel.TensorParallel, parallel.SequenceParallel);
            var tokens = tensor(Array.ConvertAll(TokensOf(split, row), token => (long)token));
            Tensor Mine(Tensor whole) => whole.index_select(0, isSplit ? tokens.view(tp.Size, -1)[tp.Rank] : tokens);
            var result = layer.Forward(Mine(x), saved);
            var gradInput = layer.BackwardInput(Mine(gradOutput), saved);
            layer.BackwardWeight(saved);
            Assert.Equal(0, saved.SizeBytes);
            var sent = (parallel.ExpertParallel.Volume.BytesByOperation.Values.Sum(), parallel.ExpertTensorParallel.Volume.BytesByOperation.Values.Sum());
            var region = new SequenceParallelRegion(tp, isSplit);
            var values = new Dictionary<string, double[]> { ["output"] = Numbers(region.Gather(result)), ["input gradient"] = Numbers(region.Gather(gradInput)) };
            var reduced = layer.Parameters.SelectMany(parameter => Reduce(parameter, parallel)).ToList();
            foreach (var (name, tensor) in (ReadOnlySpan<(string, Tensor)>)[("balance", built.Statistics.BalanceLoss), ("z", built.Statistics.ZLoss), ("load", built.Statistics.TokensPerExpert)])
            {
                parallel.World.AllReduce(tensor, ReduceOp.Sum).Wait();
                values[name] = Numbers(tensor);
            }
            return new Result(values, reduced, sent);
        }

        /// <summary>What the optimizer does with a gradient; then this rank's blocks of it.</summary>
        private static List<(TensorBlock, double[])> Reduce(Parameter parameter, ParallelState parallel)
        {
            if (parameter.Traits.IsSequenceParallel) parallel.TensorParallel.AllReduce(parameter.MainGrad, ReduceOp.Sum).Wait();
            (parameter.Traits.IsExpert ? parallel.ExpertDataParallel : parallel.DataContextParallel).AllReduce(parameter.MainGrad, ReduceOp.Sum).Wait();
            return [.. parameter.Blocks.Select(block => (block, Numbers(parameter.MainGrad.view(-1).narrow(0, block.FlatOffset, block.NumElements))))];
        }

        /// <summary>The bytes of the formula in the documentation of <see cref="ExpertExchange"/>, from the routing that the single rank chose.</summary>
        private void AssertSent(Result[] actual, int numForwards)
        {
            using var scope = NewDisposeScope();
            var dims = layout.Dims;
            var (ep, etp, local) = (dims.ExpertParallelSize, dims.ExpertTensorParallelSize, moe.NumExperts / dims.ExpertParallelSize);
            var counts = Enumerable.Range(0, layout.Ranks).Select(rank => CountsOf(rank)).ToArray();
            long Arriving(int rank, Func<int, bool> from) => dims.MembersOf(GroupKind.ExpertParallel, rank).Where(from)
                .Sum(source => counts[source].AsSpan(dims.ExpertOf(rank).Ep * local, local).ToArray().Sum());
            for (var rank = 0; rank < layout.Ranks; rank++)
            {
                var here = dims.ExpertOf(rank).Ep;
                var leaving = counts[rank].Where((_, expert) => expert / local != here).Sum();
                var (fromElsewhere, arrived) = (Arriving(rank, source => source != rank), Arriving(rank, _ => true));
                var gathered = dims.MembersOf(GroupKind.ExpertTensorParallel, rank).Sum(peer => Arriving(peer, _ => true));
                var (rowBytes, weightBytes) = (config.HiddenSize * 8L, 8L);
                long Both(long sent, long returned, long planBytes) =>
                    numForwards * (sent * (rowBytes + weightBytes) + returned * rowBytes + planBytes) + sent * rowBytes + returned * (rowBytes + weightBytes);
                Assert.Equal(Both(leaving, fromElsewhere, 8L * local * (ep - 1)), actual[rank].SentBytes.Ep);
                Assert.Equal(Both((etp - 1) * arrived, gathered - arrived, 8L * moe.NumExperts * (etp - 1)), actual[rank].SentBytes.Etp);
            }
        }

        /// <summary>[E] assignments of the tokens that a rank routes.</summary>
        private long[] CountsOf(int rank)
        {
            using var scope = NewDisposeScope();
            var (place, split, counts) = (layout.Dims.DenseOf(rank), layout.SplitOf(rank), new long[moe.NumExperts]);
            var (row, x, _) = rows[place.Dp];
            var own = split.Take(row);
            var share = new TokenShare(own.NumTokens * place.Tp / layout.Tp, own.NumTokens * (place.Tp + 1) / layout.Tp, Origin: 0);
            using var real = new RealTokens(own, share, own.NumTokens, CPU);
            var ownX = x.index_select(0, tensor(Array.ConvertAll(TokensOf(split, row), token => (long)token)));
            var chosen = nn.functional.linear(real.Select(ownX), whole["layer.mlp.gate.weight"]).topk(moe.TopK, dim: -1).indexes;
            foreach (var expert in chosen.reshape(-1).data<long>().ToArray()) counts[expert]++;
            return counts;
        }

        /// <summary>The first channel of every token is 1, so a gate's first column favours or bars an expert.</summary>
        private void Steer(string[] words)
        {
            using var scope = NewDisposeScope();
            var column = whole["layer.mlp.gate.weight"].narrow(1, 0, 1);
            if (words.Contains("one")) column.narrow(0, 5, 1).fill_(100);
            if (words.Contains("idle")) column.narrow(0, 2, 4).fill_(-100);
        }

        private Built Build(ParallelState parallel, RecomputeOptions recompute)
        {
            var rotary = new RotaryEmbedding(config.Rotary, config.KvChannels, config.MaxPositionEmbeddings, ScalarType.Float64, CPU);
            var statistics = new RoutingStatistics(config.NumLayers, moe.NumExperts, CPU);
            var context = new LayerContext
            {
                Config = config, Parallel = parallel, Region = new SequenceParallelRegion(parallel.TensorParallel, parallel.SequenceParallel), Rotary = rotary,
                Weights = new ParameterFactory(ScalarType.Float64, CPU), Attention = TestModels.Auto, Products = ProductOptions.Default, Recompute = recompute, Seed = 1, Moe = options, Routing = statistics,
            };
            ILayer layer = MoeBlock.Create(context, moe, "layer.mlp", layerIndex: 1);
            return new Built(recompute.Covers(RecomputeModules.Moe) ? new CheckpointedBlock(layer as IInputRestorable ?? throw new InvalidOperationException()) : layer, statistics, rotary);
        }

        private void Fill(Parameter parameter)
        {
            using var scope = NewDisposeScope();
            foreach (var block in parameter.Blocks)
                parameter.Data.view(-1).narrow(0, block.FlatOffset, block.NumElements).view(block.Shape).copy_(Slice(whole[block.Name], block));
        }

        private static int[] TokensOf(ContextSplit split, MicroBatch row) => split.Size == 1 ? [.. Enumerable.Range(0, row.NumTokens)] : split.RowsOf(row, split.Rank);

        private static Tensor Slice(Tensor whole, TensorBlock block)
        {
            for (var dim = 0; dim < block.Shape.Length; dim++) whole = whole.narrow(dim, block.Offset[dim], block.Shape[dim]);
            return whole;
        }

        private static Tensor Draw(Random random, params long[] shape)
        {
            var values = new double[shape.Aggregate(1L, (product, extent) => product * extent)];
            for (var i = 0; i < values.Length; i++) values[i] = 2 * random.NextDouble() - 1;
            return tensor(values, shape).DetachFromDisposeScope();
        }

        private static double[] Sum(IEnumerable<double[]> terms) => terms.Aggregate((left, right) => [.. left.Zip(right, (x, y) => x + y)]);

        private void AssertClose(string what, double[] expected, double[] actual)
        {
            Assert.Equal(expected.Length, actual.Length);
            var size = Math.Sqrt(expected.Sum(value => value * value));
            var error = Math.Sqrt(expected.Zip(actual, (x, y) => (x - y) * (x - y)).Sum());
            Assert.True(error <= LayerCheck.Tolerance * Math.Max(size, 1e-3), $"{layout}: {what}: {error} of {size}");
        }

        private static double[] Numbers(Tensor tensor) => tensor.to_type(ScalarType.Float64).contiguous().data<double>().ToArray();

        private sealed record Built(ILayer Value, RoutingStatistics Statistics, RotaryEmbedding Rotary) : IDisposable
        {
            public void Dispose()
            {
                foreach (var parameter in Value.Parameters) parameter.Dispose();
                Statistics.Dispose();
                Rotary.Dispose();
            }
        }
    }
}
