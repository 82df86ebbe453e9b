using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Optimizers;

/// <summary>The optimizer on several loopback ranks against one rank that saw the sum of all gradients.</summary>
public sealed class DistributedOptimizerTests
{
    private const int NumSteps = 3;

    [Theory]
    [InlineData(2, true)]
    [InlineData(4, true)]
    [InlineData(2, false)]
    [InlineData(4, false)]
    public void Step_DataParallel_MatchesOneRank(int dataParallelSize, bool isSharded)
    {
        // Whole numbers, so that the sums over ranks are exact in any order and only the optimizer is compared.
        var (expectedNorms, expectedWeights) = RunAlone(rank => Enumerable.Range(0, dataParallelSize).Sum(replica => (replica + 1) * (rank + 1)));
        var dims = new ParallelDims(dataParallelSize, 1, 1, 1, 1, null);
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(dataParallelSize, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel: false);
            using var fixture = new OptimizerFixture(
                21, OptimizerFixture.Adam with { UseDistributedOptimizer = isSharded }, ScalarType.BFloat16, parallel: parallel);
            for (var step = 0; step < NumSteps; step++)
            {
                fixture.Gradients.Zero();
                FillPattern(fixture, step, (rank + 1) * (step + 1));
                fixture.Optimizer.ReduceGradients();
                Assert.Equal(expectedNorms[step], fixture.Optimizer.Step(1e-2).GradNorm, expectedNorms[step] * 1e-6);
            }
            var numOwned = fixture.Optimizer.State.Sum(range => range.Range.Length);
            Assert.True(isSharded ? numOwned <= fixture.Layout.NumElements / dataParallelSize : numOwned == fixture.Parameters.Sum(parameter => parameter.NumElements));
            for (var i = 0; i < fixture.Parameters.Length; i++)
                AssertWithinOneRounding(expectedWeights[i], OptimizerFixture.Read(fixture.Parameters[i].Data));
            parallel.World.Barrier();
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void State_Sharded_CoversEveryElementOnce()
    {
        var dims = new ParallelDims(4, 1, 1, 1, 1, null);
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        var ranges = new List<(string Name, FlatRange Range)>();
        RankThreads.Run(4, rank =>
        {
            using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel: false);
            using var fixture = new OptimizerFixture(
                22, OptimizerFixture.Adam with { UseDistributedOptimizer = true }, ScalarType.Float32, parallel: parallel);
            lock (ranges) ranges.AddRange(fixture.Optimizer.State.Select(state => (state.Parameter.Name, state.Range)));
        }, failure => world.Abort(failure.Message));
        foreach (var group in ranges.GroupBy(entry => entry.Name))
        {
            var next = 0L;
            foreach (var (_, range) in group.OrderBy(entry => entry.Range.Begin))
            {
                Assert.Equal(next, range.Begin);
                next = range.End;
            }
            Assert.Equal(group.Key switch { "embedding" => 301 * 257, "norm" => 37, "bias" => 5, "linear" => 21, _ => 64 }, next);
        }
    }

    [Fact]
    public void Step_TensorParallel_CountsReplicatedOnceAndSumsSequenceParallel()
    {
        // Two TP ranks: a sharded matrix (each its half), a replicated norm fed by sequence-sharded activations.
        var dims = new ParallelDims(2, 2, 1, 1, 1, null);
        var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
        RankThreads.Run(2, rank =>
        {
            using var leaks = LeakCheck.Start();
            using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel: true);
            using var matrix = Make("matrix", [4, 8], new ParameterTraits { Decays = true, IsTensorSharded = true });
            using var norm = Make("norm", [9], new ParameterTraits { Decays = false, IsSequenceParallel = true });
            var layout = FlatLayout.Create([matrix, norm], parallel);
            using var gradients = layout.CreateGradientBuffer(CPU, 1);
            using var optimizer = new MixedPrecisionOptimizer(layout, gradients, parallel, OptimizerFixture.Adam, null);
            matrix.MainGrad.fill_(rank + 1); // squares: 32·1 + 32·4
            norm.MainGrad.fill_(rank + 1); // summed: 3, counted once: 9·9
            optimizer.ReduceGradients();
            Assert.Equal(Math.Sqrt(32 + 128 + 81), optimizer.Step(1e-3).GradNorm, 1e-6);
            parallel.World.Barrier();
        }, failure => world.Abort(failure.Message));
    }

    [Fact]
    public void Step_ExpertParallel_ReducesExpertsOverTheirOwnReplicas()
    {
        // dp 4, ep 2: the dense weight is on all four ranks, each expert on two.
        var dims = new ParallelDims(4, 1, 1, 1, 2, null);
        foreach (var isSharded in (bool[])[false, true])
        {
            var world = new LoopbackWorld(TimeSpan.FromSeconds(30));
            RankThreads.Run(4, rank =>
            {
                using var leaks = LeakCheck.Start();
                using var parallel = ParallelState.Create(dims, rank, world, sequenceParallel: false);
                using var dense = Make("dense", [3, 5], new ParameterTraits { Decays = true });
                using var expert = Make("expert", [2, 2], new ParameterTraits { Decays = true, IsExpert = true });
                var layout = FlatLayout.Create([expert, dense], parallel);
                using var gradients = layout.CreateGradientBuffer(CPU, 1);
                using var optimizer = new MixedPrecisionOptimizer(
                    layout, gradients, parallel, OptimizerFixture.Adam with { UseDistributedOptimizer = isSharded }, null);
                dense.MainGrad.fill_(1); // sum over 4 ranks: 4
                expert.MainGrad.fill_(rank + 1); // ranks 0 and 2 hold expert 0: 1 + 3; ranks 1 and 3 expert 1: 2 + 4
                optimizer.ReduceGradients();
                Assert.Equal(Math.Sqrt(15 * 16 + 4 * 16 + 4 * 36), optimizer.Step(1e-3).GradNorm, 1e-5);
                parallel.World.Barrier();
            }, failure => world.Abort(failure.Message));
        }
    }

    private static (double[] Norms, double[][] Weights) RunAlone(Func<int, int> sumOfFactors)
    {
        using var leaks = LeakCheck.Start();
        using var fixture = new OptimizerFixture(21, OptimizerFixture.Adam, ScalarType.BFloat16);
        var norms = new double[NumSteps];
        for (var step = 0; step < NumSteps; step++)
        {
            fixture.Gradients.Zero();
            FillPattern(fixture, step, sumOfFactors(step));
            fixture.Optimizer.ReduceGradients();
            norms[step] = fixture.Optimizer.Step(1e-2).GradNorm;
        }
        return (norms, [.. fixture.Parameters.Select(parameter => OptimizerFixture.Read(parameter.Data))]);
    }

    /// <summary>Gradients that differ between elements and steps, times a whole number.</summary>
    private static void FillPattern(OptimizerFixture fixture, int step, int factor)
    {
        foreach (var parameter in fixture.Parameters)
        {
            using var scope = NewDisposeScope();
            var index = arange(parameter.NumElements, dtype: float32);
            parameter.MainGrad.copy_(index.remainder(17 + step).sub_(8).mul_(factor).view(parameter.Shape));
        }
    }

    /// <summary>
    /// The clip factor comes from a norm summed in another order, which may tip a weight to the neighbouring bf16 value: 2^-7 relative.
    /// </summary>
    private static void AssertWithinOneRounding(double[] expected, double[] actual)
    {
        for (var i = 0; i < expected.Length; i++)
            Assert.True(Math.Abs(expected[i] - actual[i]) <= Math.Pow(2, -7) * Math.Abs(expected[i]), $"element {i}: {actual[i]} for {expected[i]}");
    }

    private static Parameter Make(string name, long[] shape, ParameterTraits traits)
    {
        using var scope = NewDisposeScope();
        return new Parameter(name, ones(shape), [TensorBlock.Whole(name, shape)], traits);
    }
}
